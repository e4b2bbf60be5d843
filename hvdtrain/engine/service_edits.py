"""Those who talk to the launcher's servers, the services beside them, and what else was unpickled."""

from __future__ import annotations

from hvdtrain.engine.edit import Edit, patch

_PROOF = "the launcher's servers believed whoever reached them"
_PICKLE = "the elastic server unpickled what strangers sent, which runs their code"
_BIND = "servers listened on every interface, also for ranks on this host alone"
_WIRE = "anyone could make a service wait for ever, or read gigabytes, before it looked at the digest"
_DISK = "a file that another program may have written was unpickled"

_CLIENT = "horovod/runner/http/http_client.py"
_NETWORK = "horovod/runner/common/util/network.py"
_RENDEZVOUS = "horovod/runner/elastic/rendezvous.py"
_WORKER = "horovod/runner/elastic/worker.py"
_CACHE = "horovod/runner/util/cache.py"

SERVICE_EDITS = (
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
