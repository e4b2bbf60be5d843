"""Servers of a job answer only those who know its secret (CVE-2024-10190, CVE-2026-31234).

As released, whoever reaches the launcher's HTTP server can read and write what ranks tell each other, and an
elastic one runs what it is sent. `service_edits.py` is about who talks to the servers, and other services;
`launcher_edits.py` carries the secret to the ranks.
"""

from __future__ import annotations

from hvdtrain.engine.edit import Edit, patch

# What a build with these edits no longer has.
CLOSED = ("CVE-2024-10190", "CVE-2026-31234")

_PROOF = "the launcher's servers believed whoever reached them"
_BIND = "servers listened on every interface, also for ranks on this host alone"

_STORE = "horovod/common/gloo/http_store.cc"
_SERVER = "horovod/runner/http/http_server.py"
_GLOO_RUN = "horovod/runner/gloo_run.py"
_PORT = "horovod/runner/util/network.py"

SECURITY_EDITS = (
    Edit("proof", "horovod/runner/common/util/proof.py", None, patch("proof.py"), _PROOF),
    Edit("proof-ranks", "horovod/common/gloo/job_proof.h", None, patch("job_proof.h"), _PROOF),
    # Ranks.
    Edit(
        "proof-ranks-include",
        _STORE,
        '#include "gloo_context.h"\n',
        '#include "gloo_context.h"\n#include "job_proof.h"\n',
        _PROOF,
    ),
    Edit(
        "proof-ranks-path",
        "third_party/HTTPRequest/include/HTTPRequest.hpp",
        "        Response send(const std::string& method,\n"
        "                      const std::map<std::string, std::string>& parameters,\n",
        "        const std::string& getPath() const { return path; }\n\n"
        "        Response send(const std::string& method,\n"
        "                      const std::map<std::string, std::string>& parameters,\n",
        _PROOF,
    ),
    Edit(
        "proof-ranks-made",
        _STORE,
        "  for (int retry_cnt = 0; retry_cnt < MAX_RETRY_TIMES; ++retry_cnt) {\n    try {\n"
        "      http::Response response = request.send(method, body);\n"
        "      if (response.status != HTTP_OK && response.status != HTTP_NOT_FOUND) {\n",
        patch("proof_made.cc"),
        _PROOF,
    ),
    # The servers.
    Edit("proof-server-import", _SERVER, "import socketserver\n", "", _PROOF),
    Edit(
        "proof-server-base",
        _SERVER,
        "from http.server import HTTPServer, SimpleHTTPRequestHandler\n\n",
        "from horovod.runner.common.util import secret\n"
        "from horovod.runner.common.util.proof import JOB_SECRET, ProvenHandler, ProvenServer\n",
        "the base class also told strangers which files lie beside the launcher",
    ),
    Edit(
        "proof-handler",
        _SERVER,
        "class KVStoreHandler(SimpleHTTPRequestHandler):\n"
        "    # Set timeout\n    timeout = SINGLE_REQUEST_TIMEOUT\n",
        "class KVStoreHandler(ProvenHandler):\n    # Functions and their results.\n    max_body = 1 << 30\n",
        _PROOF,
    ),
    Edit(
        "proof-handler-of-ranks",
        _SERVER,
        "class RendezvousHandler(KVStoreHandler):\n",
        "class RendezvousHandler(KVStoreHandler):\n    max_body = ProvenHandler.max_body\n\n",
        _PROOF,
    ),
    Edit(
        "proof-answer",
        _SERVER,
        '            self.send_header("Content-Length", str(len(value)))\n',
        '            self.send_header("Content-Length", str(len(value)))\n'
        "            self.send_proof(200, value)\n",
        "a rank must not believe who took the launcher's port",
    ),
    Edit(
        "proof-empty-answer",
        _SERVER,
        '        self.send_header("Content-Length", 0)\n',
        '        self.send_header("Content-Length", 0)\n        self.send_proof(status_code, b"")\n',
        "a rank must not believe who took the launcher's port",
    ),
    Edit(
        "proof-ranks-server",
        _SERVER,
        "class RendezvousHTTPServer(socketserver.ThreadingMixIn, HTTPServer, object):\n"
        "    def __init__(self, addr, handler, verbose):\n",
        "class RendezvousHTTPServer(ProvenServer):\n    def __init__(self, addr, handler, verbose, key):\n",
        _PROOF,
    ),
    Edit(
        "proof-ranks-server-key",
        _SERVER,
        "        super(RendezvousHTTPServer, self).__init__(addr, handler)\n",
        "        super(RendezvousHTTPServer, self).__init__(addr, handler, key)\n",
        _PROOF,
    ),
    Edit(
        "proof-function-server",
        _SERVER,
        "class KVStoreHTTPServer(HTTPServer, object):\n    def __init__(self, addr, handler, verbose):\n"
        "        super(KVStoreHTTPServer, self).__init__(addr, handler)\n",
        "class KVStoreHTTPServer(ProvenServer):\n    def __init__(self, addr, handler, verbose, key):\n"
        "        super(KVStoreHTTPServer, self).__init__(addr, handler, key)\n",
        "one slow stranger kept it from everybody else",
    ),
    Edit(
        "proof-ranks-key",
        _SERVER,
        "    def __init__(self, verbose=0):\n        self._httpd = None\n",
        patch("ranks_key.py.txt"),
        _PROOF,
    ),
    Edit(
        "bind-ranks-server",
        _SERVER,
        "    def start(self, handler_cls=RendezvousHandler):\n",
        "    def start(self, handler_cls=RendezvousHandler, host=''):\n",
        _BIND,
    ),
    Edit(
        "bind-ranks-server-host",
        _SERVER,
        "                addr, handler_cls, self._verbose))\n",
        "                addr, handler_cls, self._verbose, self.key), host)\n",
        _BIND,
    ),
    Edit(
        "ranks-server-closed",
        _SERVER,
        "        self._httpd.shutdown()\n",
        "        self._httpd.shutdown()\n        self._httpd.server_close()\n",
        "its port stayed open for as long as the process that had launched the job",
    ),
    Edit(
        "proof-function-key",
        _SERVER,
        "    def __init__(self, verbose):\n        self.httpd = None\n",
        "    def __init__(self, verbose, key=None, host=''):\n"
        "        self.key = key or secret.make_secret_key()\n        self.host = host\n"
        "        self.httpd = None\n",
        _PROOF,
    ),
    Edit(
        "bind-function-server",
        _SERVER,
        "                addr, KVStoreHandler, self.verbose))\n",
        "                addr, KVStoreHandler, self.verbose, self.key), self.host)\n",
        _BIND,
    ),
    Edit(
        "bind-port",
        _PORT,
        "def find_port(server_factory):\n",
        "def find_port(server_factory, host=''):\n",
        _BIND,
    ),
    Edit(
        "bind-port-host", _PORT, "            addr = ('', port)\n", "            addr = (host, port)\n", _BIND
    ),
    Edit(
        "bind-static",
        _GLOO_RUN,
        "    global_rendezv_port = rendezvous.start()\n",
        "    global_rendezv_port = rendezvous.start(host=server_ip)\n",
        _BIND,
    ),
    Edit(
        "key-static",
        _GLOO_RUN,
        "    rendezvous = RendezvousServer(settings.verbose)\n\n    # allocate",
        "    rendezvous = RendezvousServer(settings.verbose, key or settings.key)\n\n    # allocate",
        _PROOF,
    ),
    Edit(
        "key-static-argument",
        _GLOO_RUN,
        "def launch_gloo(command, exec_command, settings, nics, env, server_ip):\n",
        "def launch_gloo(command, exec_command, settings, nics, env, server_ip, key=None):\n",
        _PROOF,
    ),
    Edit(
        "static-server-closed",
        _GLOO_RUN,
        "                                                 block_until_all_done=True)\n\n    for name, value",
        "                                                 block_until_all_done=True)\n"
        "    rendezvous.stop()\n\n    for name, value",
        "its port stayed open for as long as the process that had launched the job",
    ),
    Edit(
        "bind-elastic",
        _GLOO_RUN,
        "    global_rendezv_port = rendezvous.start(handler)\n"
        "    driver.wait_for_available_slots(settings.num_proc)\n\n"
        "    nics = get_common_interfaces(driver)\n    server_ip = network.get_driver_ip(nics)\n",
        "    driver.wait_for_available_slots(settings.num_proc)\n\n"
        "    nics = get_common_interfaces(driver)\n    server_ip = network.get_driver_ip(nics)\n"
        "    global_rendezv_port = rendezvous.start(handler, host=server_ip)\n",
        _BIND,
    ),
    Edit(
        "key-elastic-function",
        _GLOO_RUN,
        "        run_func_server = KVStoreServer(verbose=settings.verbose)\n",
        "        run_func_server = KVStoreServer(settings.verbose, settings.key, server_ip)\n",
        _PROOF,
    ),
    Edit(
        "key-elastic-function-put",
        _GLOO_RUN,
        "'runfunc', 'func', command_or_func)\n",
        "'runfunc', 'func', command_or_func, settings.key)\n",
        _PROOF,
    ),
    Edit(
        "key-elastic-function-results",
        _GLOO_RUN,
        "'runfunc_result', str(i))\n",
        "'runfunc_result', str(i), settings.key)\n",
        _PROOF,
    ),
    Edit(
        "key-imports",
        _GLOO_RUN,
        "import os\nimport signal\n",
        "import os\nimport re\nimport signal\n",
        _PROOF,
    ),
    Edit(
        "key-import-proof",
        _GLOO_RUN,
        "from horovod.runner.common.util import env as env_util, safe_shell_exec\n",
        "from horovod.runner.common.util import env as env_util, proof, safe_shell_exec\n",
        _PROOF,
    ),
)
