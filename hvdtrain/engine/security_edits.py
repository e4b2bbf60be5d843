"""Servers of a job answer only those who know its secret (CVE-2024-10190, CVE-2026-31234).

As released, whoever reaches the launcher's HTTP server can read and write what ranks tell each other, and an
elastic one runs what it is sent. `launcher_edits.py` carries the secret to the ranks.
"""

from __future__ import annotations

from hvdtrain.engine.edit import Edit, patch

# What a build with these edits no longer has.
CLOSED = ("CVE-2024-10190", "CVE-2026-31234")

_PROOF = "the launcher's servers believed whoever reached them"
_PICKLE = "the elastic server unpickled what strangers sent, which runs their code"
_BIND = "servers listened on every interface, also for ranks on this host alone"
_WIRE = "anyone could make a service wait for ever, or read gigabytes, before it looked at the digest"
_DISK = "a file that another program may have written was unpickled"

_STORE = "horovod/common/gloo/http_store.cc"
_SERVER = "horovod/runner/http/http_server.py"
_CLIENT = "horovod/runner/http/http_client.py"
_GLOO_RUN = "horovod/runner/gloo_run.py"
_NETWORK = "horovod/runner/common/util/network.py"
_RENDEZVOUS = "horovod/runner/elastic/rendezvous.py"
_WORKER = "horovod/runner/elastic/worker.py"
_PORT = "horovod/runner/util/network.py"
_CACHE = "horovod/runner/util/cache.py"

_PROOF_IMPORT = "from horovod.runner.common.util import proof\n"

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
    # Their Python clients.
    Edit(
        "proof-client-imports",
        _CLIENT,
        "from urllib.request import Request\nfrom urllib.request import urlopen\n\n"
        "from horovod.runner.common.util import codec\n",
        "\nfrom horovod.runner.common.util import codec, proof\n",
        _PROOF,
    ),
    Edit("proof-client-get", _CLIENT, patch("client_get.old.py.txt"), patch("client_get.new.py.txt"), _PROOF),
    Edit("proof-client-put", _CLIENT, patch("client_put.old.py.txt"), patch("client_put.new.py.txt"), _PROOF),
    # Elastic jobs.
    Edit(
        "elastic-json",
        _RENDEZVOUS,
        "                addresses, secret_key = codec.loads_base64(value)\n"
        "                self._put_worker_addresses(host, int(local_rank), addresses, secret_key)\n",
        patch("elastic_json.py.txt"),
        _PICKLE,
    ),
    Edit(
        "elastic-json-import",
        _RENDEZVOUS,
        "import logging\n\nfrom horovod.runner.common.util import codec\n",
        "import json\nimport logging\n\n",
        _PICKLE,
    ),
    Edit(
        "elastic-once",
        _RENDEZVOUS,
        "    class ElasticRendezvousHandler(RendezvousHandler):\n",
        "    class ElasticRendezvousHandler(RendezvousHandler):\n"
        "        def changes_something(self):\n"
        "            # Asking for one's rank says that one is ready.\n"
        "            asks = self.path.startswith(f'/{GET_RANK_AND_SIZE}/')\n"
        "            return asks or super().changes_something()\n\n",
        _PROOF,
    ),
    Edit(
        "elastic-worker",
        _WORKER,
        patch("elastic_worker.old.py.txt"),
        patch("elastic_worker.new.py.txt"),
        "a secret of their own went over the network for everybody to read, pickled",
    ),
    Edit(
        "elastic-worker-import",
        _WORKER,
        "import os\nimport threading\n",
        "import json\nimport os\nimport threading\n",
        _PICKLE,
    ),
    Edit(
        "elastic-worker-proof",
        _WORKER,
        "from horovod.runner.common.util import network, secret\n",
        "from horovod.runner.common.util import network, proof\n",
        _PICKLE,
    ),
    Edit(
        "elastic-worker-client",
        _WORKER,
        "from horovod.runner.http.http_client import put_data_into_kvstore\n",
        "",
        _PICKLE,
    ),
    # The services that look for common interfaces, and those that tell elastic ranks of new hosts.
    Edit(
        "wire-label",
        _NETWORK,
        "secret.compute_digest(self._key, message)",
        "secret.compute_digest(self._key, b'wire\\n' + message)",
        "a digest must mean one thing only, where one key serves for two",
    ),
    Edit("wire-read", _NETWORK, patch("wire_read.old.py.txt"), patch("wire_read.new.py.txt"), _WIRE),
    Edit(
        "wire-limit",
        _NETWORK,
        "    def __init__(self, key):\n        self._key = key\n",
        "    # Bytes; code that Spark sends is larger than all that horovodrun does.\n"
        "    MOST = 64 << 20\n\n    def __init__(self, key):\n        self._key = key\n",
        _WIRE,
    ),
    Edit(
        "wire-in-time",
        _NETWORK,
        "                    req = server._wire.read(self.rfile)\n",
        "                    req = server._wire.read(io.BufferedReader(\n"
        "                        proof.Timed(self.connection, proof.SECONDS_FOR_HEADERS)))\n"
        "                    self.connection.settimeout(None)\n",
        _WIRE,
    ),
    Edit(
        "wire-quiet",
        _NETWORK,
        "                except (EOFError, BrokenPipeError):\n",
        "                except StrangerError as error:\n"
        "                    logging.debug('%s: %s', self.client_address, error)\n"
        "                except (EOFError, ConnectionError, TimeoutError):\n",
        _WIRE,
    ),
    Edit(
        "wire-stranger",
        _NETWORK,
        "class NoValidAddressesFound(Exception):\n    pass\n",
        "class NoValidAddressesFound(Exception):\n    pass\n\n\n"
        'class StrangerError(Exception):\n    """A message of someone who does not know the key."""\n',
        _WIRE,
    ),
    Edit(
        "wire-imports",
        _NETWORK,
        "import pickle\nimport psutil\n",
        "import io\nimport logging\nimport pickle\nimport psutil\n",
        _WIRE,
    ),
    Edit(
        "wire-proof",
        _NETWORK,
        "from horovod.runner.common.util import secret\n",
        "from horovod.runner.common.util import proof, secret\n",
        _WIRE,
    ),
    Edit(
        "bind-service",
        _NETWORK,
        "                addr, self._make_handler()))\n        self._server._block_on_close = True\n",
        "                addr, self._make_handler()), self._host())\n"
        "        self._server._block_on_close = True\n",
        _BIND,
    ),
    Edit(
        "bind-service-host",
        _NETWORK,
        "    def _get_local_addresses(self):\n",
        patch("service_host.py.txt"),
        _BIND,
    ),
    # Files.
    Edit(
        "config-file",
        "horovod/runner/launch.py",
        "yaml.load(f, Loader=yaml.FullLoader)",
        "yaml.safe_load(f)",
        "a file of settings needs plain values only",
    ),
    Edit(
        "cache-import",
        _CACHE,
        "import threading\nimport cloudpickle\n",
        "import json\nimport threading\n",
        _DISK,
    ),
    Edit("cache-file", _CACHE, patch("cache_file.old.py.txt"), patch("cache_file.new.py.txt"), _DISK),
    Edit("cache-use", _CACHE, patch("cache_use.old.py.txt"), patch("cache_use.new.py.txt"), _DISK),
    Edit("cache-read", _CACHE, patch("cache_read.old.py.txt"), patch("cache_read.new.py.txt"), _DISK),
    # Launchers that hvdtrain does not use, which have to tell their ranks the secret too.
    Edit(
        "key-ray",
        "horovod/ray/runner.py",
        '            "HOROVOD_CPU_OPERATIONS": "gloo",\n        }\n',
        '            "HOROVOD_CPU_OPERATIONS": "gloo",\n'
        "            **self.rendezvous.secret_env(),\n        }\n",
        _PROOF,
    ),
    *(
        Edit(
            f"key-ray-{place}",
            f"horovod/ray/{place}.py",
            "            server_ip, nics, global_rendezv_port, elastic=True)\n",
            "            server_ip, nics, global_rendezv_port, elastic=True)\n"
            "        self.run_env_vars.update(self.rendezvous.secret_env())\n",
            _PROOF,
        )
        for place in ("elastic", "elastic_v2")
    ),
    Edit(
        "key-spark",
        "horovod/spark/gloo_run.py",
        "    exec_command = _exec_command_fn(driver, key, settings, env,\n",
        "    env[proof.JOB_SECRET] = key.hex()\n"
        "    exec_command = _exec_command_fn(driver, key, settings, env,\n",
        _PROOF,
    ),
    Edit(
        "key-spark-server",
        "horovod/spark/gloo_run.py",
        "settings, nics, {}, server_ip)",
        "settings, nics, {}, server_ip, key)",
        _PROOF,
    ),
    Edit(
        "key-spark-elastic",
        "horovod/spark/gloo_run.py",
        "    rendezvous = SparkRendezvousServer(driver, settings.verbose)\n",
        "    rendezvous = SparkRendezvousServer(driver, settings.verbose)\n"
        "    rendezvous.key = settings.key\n    env[proof.JOB_SECRET] = settings.key.hex()\n",
        _PROOF,
    ),
    Edit(
        "key-spark-import",
        "horovod/spark/gloo_run.py",
        "from horovod.runner.common.util import codec, secret\n",
        "from horovod.runner.common.util import codec, proof, secret\n",
        _PROOF,
    ),
)
