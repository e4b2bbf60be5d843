"""Proof, on each request to a launcher's server and each answer, that the other end knows the job's secret.

The secret is 256 random bits. A request carries a nonce, its body's SHA-256, and an HMAC-SHA256 of both with
its method and path. An answer carries an HMAC of its status, that nonce and its own body's SHA-256. Headers
are judged before any of a body is read. For ranks, horovod/common/gloo/job_proof.h does the same.
"""

import hashlib
import hmac
import http.client
import io
import logging
import os
import re
import secrets
import socket
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.error import URLError

JOB_SECRET = "HOROVOD_JOB_SECRET"
NONCE, BODY, PROOF = "X-Horovod-Nonce", "X-Horovod-Body", "X-Horovod-Proof"
# Within so many seconds whoever connects has said all of a request's headers, and has sent all of its body.
SECONDS_FOR_HEADERS, SECONDS_FOR_BODY = 10, 300
SECONDS_FOR_ANSWER = 60
FORBIDDEN, BAD_REQUEST, TOO_LARGE = 403, 400, 413


def job_secret():
    """The job's secret, which its launcher gave to this process.

    Raises:
        RuntimeError: it gave none.
    """
    text = os.environ.get(JOB_SECRET)
    if text is None:
        raise RuntimeError(
            f"{JOB_SECRET} is not set, and the launcher answers nobody who does not know it: start this "
            "program with the horovodrun of the same Horovod."
        )
    return bytes.fromhex(text)


def sign(key, *parts):
    """The HMAC-SHA256 of the parts, which hold no line ends, in hexadecimal digits."""
    return hmac.new(key, "\n".join(parts).encode("latin-1"), hashlib.sha256).hexdigest()


def same(expected, found):
    """Whether a digest is the expected one, in a time that does not tell where they differ."""
    return hmac.compare_digest(expected.encode(), found.encode("utf-8", "replace"))


def ask(addr, port, method, scope, key, body=b"", secret_key=None):
    """Sends one request to a server of this module, and gives its answer's body.

    Raises:
        URLError: the server cannot be reached, refuses, or does not prove that it knows the secret.
    """
    secret_key = secret_key or job_secret()
    path, nonce, digest = f"/{scope}/{key}", secrets.token_hex(16), hashlib.sha256(body).hexdigest()
    proof = sign(secret_key, method, path, nonce, digest)
    link = http.client.HTTPConnection(addr, int(port), timeout=SECONDS_FOR_ANSWER)
    try:
        link.request(method, path, body, {NONCE: nonce, BODY: digest, PROOF: proof})
        answer = link.getresponse()
        value = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise URLError(error) from error
    finally:
        link.close()
    expected = sign(secret_key, str(answer.status), nonce, hashlib.sha256(value).hexdigest())
    if not same(expected, answer.headers.get(PROOF, "")):
        raise URLError(f"{addr}:{port} answers {answer.status} without proof of the job's secret")
    if answer.status != 200:
        raise URLError(f"{addr}:{port} answers {answer.status} to {method} {path}")
    return value


class Timed(socket.SocketIO):
    """What is read from a connection, until a deadline."""

    def __init__(self, connection, seconds):
        super().__init__(connection, "r")
        self._connection = connection
        self.extend(seconds)

    def extend(self, seconds):
        """Sets the deadline to so many seconds from now."""
        self._deadline = time.monotonic() + seconds

    def readinto(self, buffer):
        """Reads what is there, or waits for something.

        Raises:
            TimeoutError: the deadline is over.
        """
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the request did not arrive in time")
        self._connection.settimeout(remaining)
        return super().readinto(buffer)


class ProvenServer(socketserver.ThreadingMixIn, HTTPServer):
    """A server that answers those who know the secret, each in a thread of its own."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, addr, handler, key):
        self.key = key
        self._used = set()
        self._used_lock = threading.Lock()
        super().__init__(addr, handler)

    def first_use(self, nonce):
        """Whether no request before had that nonce."""
        with self._used_lock:
            is_new = nonce not in self._used
            self._used.add(nonce)
            return is_new

    def handle_error(self, request, client_address):
        """Anyone can cause errors here, and none of them is the job's."""
        logging.debug("request of %s failed", client_address, exc_info=True)


class ProvenHandler(BaseHTTPRequestHandler):
    """Refuses whoever does not know the secret, whatever the method, before a byte of the body is read."""

    max_body = 16 << 20

    def setup(self):
        super().setup()
        self.rfile.close()
        self._timed = Timed(self.connection, SECONDS_FOR_HEADERS)
        self.rfile = io.BufferedReader(self._timed)

    def parse_request(self):
        return super().parse_request() and self._is_of_this_job() and self._take_body()

    def send_proof(self, status, body):
        """Adds the header that proves an answer."""
        digest = hashlib.sha256(body).hexdigest()
        self.send_header(PROOF, sign(self.server.key, str(status), self._nonce, digest))

    def changes_something(self):
        """Whether the request must not be answered twice."""
        return self.command != "GET"

    def _is_of_this_job(self):
        nonce, digest, proof = (self.headers.get(name, "") for name in (NONCE, BODY, PROOF))
        well_formed = re.fullmatch("[0-9a-f]{32}", nonce) and re.fullmatch("[0-9a-f]{64}", digest)
        expected = sign(self.server.key, self.command, self.path, nonce, digest) if well_formed else ""
        if not well_formed or not same(expected, proof):
            return self._refuse(FORBIDDEN)
        if self.changes_something() and not self.server.first_use(nonce):
            return self._refuse(FORBIDDEN)
        self._nonce = nonce
        return True

    def _take_body(self):
        length = self.headers.get("Content-Length", "0")
        if not re.fullmatch("[0-9]{1,18}", length) or self.path.count("/") != 2:
            return self._refuse(BAD_REQUEST)
        if int(length) > self.max_body:
            return self._refuse(TOO_LARGE)
        self._timed.extend(SECONDS_FOR_BODY)
        body = self.rfile.read(int(length))
        if not same(hashlib.sha256(body).hexdigest(), self.headers[BODY]):
            return self._refuse(FORBIDDEN)
        self.rfile = io.BytesIO(body)
        return True

    def _refuse(self, status):
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False
