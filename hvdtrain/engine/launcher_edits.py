"""How Horovod's launcher gives ranks their environment and the job's secret: no command line shows them."""

from __future__ import annotations

from hvdtrain.engine.edit import Edit, patch

_SHOWN = (
    "command lines can be read by every user of a host, and held the environment of the job with its secret"
)
_STDIN = "what a command line must not show goes through the standard input"
_KEY = "servers must answer only clients that know the job's secret"

_GLOO_RUN = "horovod/runner/gloo_run.py"
_SHELL = "horovod/runner/common/util/safe_shell_exec.py"
_DRIVER = "horovod/runner/driver/driver_service.py"
_LAUNCH = "horovod/runner/launch.py"

LAUNCHER_EDITS = (
    # Programs are given a standard input.
    Edit(
        "stdin-argument",
        _SHELL,
        "            prefix_output_with_timestamp=False):\n",
        "            prefix_output_with_timestamp=False, stdin=None):\n",
        _STDIN,
    ),
    Edit(
        "stdin-documented",
        _SHELL,
        "    :param prefix_output_with_timestamp: prepend text streams with timestamp if True\n",
        "    :param prefix_output_with_timestamp: prepend text streams with timestamp if True\n"
        "    :param stdin: text for the command's standard input, which is empty if None\n",
        _STDIN,
    ),
    Edit(
        "stdin-middleman",
        _SHELL,
        "def _exec_middleman(command, env, exit_event, stdout, stderr, rw):\n",
        "def _exec_middleman(command, env, exit_event, stdout, stderr, rw, stdin=None):\n",
        _STDIN,
    ),
    Edit(
        "stdin-given",
        _SHELL,
        "                                                          (r, w)))\n",
        "                                                          (r, w), stdin))\n",
        _STDIN,
    ),
    Edit(
        "stdin-written",
        _SHELL,
        "                                      stdout=stdout_w, stderr=stderr_w)\n",
        patch("stdin_written.py.txt"),
        _STDIN,
    ),
    # Ranks.
    Edit(
        "rank-environment",
        _GLOO_RUN,
        "def _exec_command_fn(settings):\n",
        patch("rank_environment.py.txt"),
        _SHOWN,
    ),
    Edit(
        "rank-command",
        _GLOO_RUN,
        "            local_command = quote('cd {pwd} > /dev/null 2>&1 ; {command}'\n"
        "                                  .format(pwd=os.getcwd(), command=command))\n",
        "            stdin = _environment_script(rank_env)\n"
        "            local_command = _command_with_environment(command)\n",
        _SHOWN,
    ),
    Edit(
        "rank-command-here",
        _GLOO_RUN,
        "        index = slot_info.rank\n        host_name = slot_info.hostname\n",
        "        index = slot_info.rank\n        host_name = slot_info.hostname\n"
        "        rank_env = _rank_environment(settings, env)\n        stdin = None\n",
        _SHOWN,
    ),
    Edit(
        "rank-executed",
        _GLOO_RUN,
        "            exit_code = safe_shell_exec.execute(command,\n",
        "            exit_code = safe_shell_exec.execute(command, env=rank_env, stdin=stdin,\n",
        _SHOWN,
    ),
    Edit(
        "rank-static",
        _GLOO_RUN,
        "    exec_command = _exec_command_fn(settings)\n"
        "    launch_gloo(command, exec_command, settings, nics, env, server_ip)\n",
        "    exec_command = _exec_command_fn(settings, env)\n"
        "    launch_gloo(command, exec_command, settings, nics, {}, server_ip)\n",
        _SHOWN,
    ),
    Edit(
        "rank-elastic",
        _GLOO_RUN,
        "    exec_command = _exec_command_fn(settings)\n"
        "    rendezvous = RendezvousServer(settings.verbose)\n"
        "    return launch_gloo_elastic(command_or_func, exec_command, settings, env, ",
        "    exec_command = _exec_command_fn(settings, env)\n"
        "    rendezvous = RendezvousServer(settings.verbose, settings.key)\n"
        "    return launch_gloo_elastic(command_or_func, exec_command, settings, {}, ",
        _SHOWN,
    ),
    Edit(
        "rank-not-in-command-lines",
        "horovod/runner/common/util/env.py",
        "'.*CUDA_VISIBLE_DEVICES', secret.HOROVOD_SECRET_KEY}",
        "'.*CUDA_VISIBLE_DEVICES', secret.HOROVOD_SECRET_KEY,\n                  proof.JOB_SECRET}",
        _SHOWN,
    ),
    Edit(
        "rank-not-in-command-lines-import",
        "horovod/runner/common/util/env.py",
        "from horovod.runner.common.util import secret\n",
        "from horovod.runner.common.util import proof, secret\n",
        _SHOWN,
    ),
    # What looks for common interfaces on all hosts before ranks start.
    Edit(
        "interfaces-command",
        _DRIVER,
        patch("interfaces_command.old.py.txt"),
        "        command = '{python} -m horovod.runner.task_fn'.format(python=sys.executable)\n"
        "        stdin = task_fn.errand(index, num_hosts, driver_addresses, settings)\n",
        "the command line exposed the key of services that unpickle signed messages",
    ),
    Edit(
        "interfaces-import",
        _DRIVER,
        "from horovod.runner.common.util import codec, safe_shell_exec\n",
        "from horovod.runner import task_fn\nfrom horovod.runner.common.util import safe_shell_exec\n",
        _STDIN,
    ),
    Edit("interfaces-arguments", _DRIVER, "append([command])", "append([command, stdin])", _STDIN),
    Edit(
        "interfaces-function",
        _DRIVER,
        "def _exec_command(command):",
        "def _exec_command(command, stdin):",
        _STDIN,
    ),
    Edit(
        "interfaces-executed",
        _DRIVER,
        "safe_shell_exec.execute(command,\n",
        "safe_shell_exec.execute(command, stdin=stdin,\n",
        _STDIN,
    ),
    Edit(
        "interfaces-task",
        "horovod/runner/task_fn.py",
        patch("interfaces_task.old.py.txt"),
        patch("interfaces_task.new.py.txt"),
        "the command line exposed the key of services that unpickle signed messages",
    ),
    Edit(
        "interfaces-task-import",
        "horovod/runner/task_fn.py",
        "import sys\n\nfrom horovod.runner.common.util import codec, host_hash\n"
        "from horovod.runner.driver import driver_service\n",
        "import json\nimport sys\n\nfrom horovod.runner.common.util import host_hash, timeout\n"
        "from horovod.runner.common.util.settings import Settings\n",
        _STDIN,
    ),
    Edit(
        "interfaces-task-driver",
        "horovod/runner/task_fn.py",
        "    task = task_service.HorovodRunTaskService(",
        "    # The driver's module imports this one.\n"
        "    from horovod.runner.driver import driver_service\n\n"
        "    task = task_service.HorovodRunTaskService(",
        _STDIN,
    ),
    # Functions given to horovod.run().
    Edit(
        "function-server",
        _LAUNCH,
        "        run_func_server = KVStoreServer(verbose=settings.verbose)\n",
        "        run_func_server = KVStoreServer(settings.verbose, settings.key, driver_ip)\n",
        _KEY,
    ),
    Edit(
        "function-put",
        _LAUNCH,
        "                              'runfunc', 'func', args.run_func)\n",
        "                              'runfunc', 'func', args.run_func, settings.key)\n",
        _KEY,
    ),
    Edit(
        "function-results",
        _LAUNCH,
        "                                                    'runfunc_result', str(i))\n",
        "                                                    'runfunc_result', str(i), settings.key)\n",
        _KEY,
    ),
    Edit(
        "function-environment",
        _LAUNCH,
        "def _launch_job(args, settings, nics, command):\n    env = os.environ.copy()\n",
        "def _launch_job(args, settings, nics, command):\n    env = os.environ.copy()\n"
        "    env.pop(proof.JOB_SECRET, None)\n"
        "    if settings.run_func_mode:\n        env[proof.JOB_SECRET] = settings.key.hex()\n",
        _KEY,
    ),
    Edit(
        "function-environment-import",
        _LAUNCH,
        "import config_parser, hosts, safe_shell_exec, secret, timeout\n",
        "import config_parser, hosts, proof, safe_shell_exec, secret, timeout\n",
        _KEY,
    ),
    Edit(
        "function-mpi",
        "horovod/runner/mpi_run.py",
        "for key in sorted(env.keys()) if env_util.is_exportable(key))\n",
        "for key in sorted(env.keys()) if env_util.is_exportable(key) or key == proof.JOB_SECRET)\n",
        "mpirun takes variables by name, which shows no value",
    ),
    Edit(
        "function-mpi-import",
        "horovod/runner/mpi_run.py",
        "import env as env_util, hosts, safe_shell_exec, tiny_shell_exec\n",
        "import env as env_util, hosts, proof, safe_shell_exec, tiny_shell_exec\n",
        _KEY,
    ),
)
