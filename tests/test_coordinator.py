"""Where the first of several processes listens: at the address it was given and nowhere else; or a line tells why."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from run_fixtures import TINY, flags

from vae_jax.cli import main
from vae_jax.device.coordinator import BIND, claimed
from vae_jax.errors import UserError

# Joins, and prints the addresses at which this process listens then.
JOIN = """
import json, sys
import psutil
from vae_jax.device import processes
processes.join(*json.loads(sys.argv[1]), 100, print)
print(json.dumps([each.laddr for each in psutil.Process().net_connections("inet") if each.status == "LISTEN"]))
processes.leave(0)
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listening(host: str = "127.0.0.1", shared: bool = False) -> socket.socket:
    """A socket that listens, as another program's would; shared as gRPC shares its own with all processes of a user."""
    other = socket.socket()
    if shared:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    other.bind((host, 0))
    other.listen()
    return other


def test_it_listens_where_it_was_said_and_nowhere_else():
    """Really joined, with a listing of the process's sockets; by Slurm's environment too, and where jax's own tells."""
    first, second, third = ports = [free_port() for _ in range(3)]
    slurm = {
        **{"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "JAX_COORDINATOR_PORT": str(second)},
        **{"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    }
    own = "[::1]" if Path("/proc/net/if_inet6").exists() else "127.0.0.1"
    cases = [
        ([f"{own}:{first}", 1, 0], {}, {own.strip("[]")}),
        ([None, None, None], slurm, {"127.0.0.1", "::1"}),
        ([f"127.0.0.1:{third}", 1, 0], {BIND: f"0.0.0.0:{third}"}, {"0.0.0.0", "::"}),  # as in a container
    ]
    joined = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN, json.dumps(job)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for job, environment, _ in cases
    ]
    for process, port, (_, _, expected) in zip(joined, ports, cases, strict=True):
        out, said = process.communicate(timeout=100)
        assert process.returncode == 0, said
        # The others are Gloo's, at ports of its own.
        hosts = {host.removeprefix("::ffff:") for host, at in json.loads(out.splitlines()[-1]) if at == port}
        assert hosts, out
        assert hosts <= expected


def test_ctrl_c_while_it_waits_for_the_others(tmp_path):
    """It waits in C++, which no Ctrl-C reaches."""
    port = free_port()
    more = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", "0", "--wait=300"]
    arguments = ["--out", str(tmp_path / "run"), "--config=digits", *more]
    begin = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's jobs may ignore it
    waiting = subprocess.Popen(
        [sys.executable, "-c", f"{begin}; from vae_jax.__main__ import main; main()", "train", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while waiting.poll() is None and time.monotonic() < deadline:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.1)
    waiting.send_signal(signal.SIGINT)
    said = waiting.communicate(timeout=100)[1]
    assert waiting.returncode == 130
    assert said.startswith("vae-jax: interrupted")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_refused_in_one_line(tmp_path, capsys, host, shared):
    """The command says so, since jax's service may crash."""
    with closing(listening(host, shared)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        more = ["--distributed", "--coordinator", address, "--processes", "2", "--process", "0"]
        assert main(["train", "--out", str(tmp_path / "run"), "--config=digits", *flags(**TINY), *more]) == 2
    expected = f"--coordinator {address}: expected a port that is free; found it in use by another program"
    assert capsys.readouterr().err == f"vae-jax: error: {expected}\n"
    assert not (tmp_path / "run").exists()


def test_one_process_claims_an_address_and_may_share_it_with_itself_only():
    address = f"127.0.0.1:{free_port()}"
    with claimed(address, "--coordinator", print):
        with pytest.raises(UserError, match="expected a port that is free"), claimed(address, "--coordinator", print):
            raise AssertionError
        with socket.socket() as service:  # as gRPC's
            service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            service.bind(("127.0.0.1", int(address.rpartition(":")[2])))
            service.listen()
            with socket.create_connection(service.getsockname()) as other:
                service.accept()[0].close()  # it closes first, and the connection is remembered for a minute
                other.recv(1)
    with claimed(address, "--coordinator", print):  # a run that goes on at once
        pass


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.77", r"expected an address of this machine, .* found 192\.0\.2\.77; .* JAX_COORDINATOR_BIND_ADDRESS"),
        ("nowhere.invalid", r"expected a host that can be looked up; found 'nowhere\.invalid'"),
        ("a..b", r"expected a host that can be looked up; found 'a\.\.b'"),
    ],
)
def test_what_is_no_address_of_this_machine_is_refused(host, message):
    with pytest.raises(UserError, match=message), claimed(f"{host}:{free_port()}", "--coordinator", print):
        raise AssertionError


def test_a_port_that_is_not_permitted_is_refused(monkeypatch):
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 81:
        pytest.skip("every user of this machine may listen at every port")
    user = os.geteuid()
    if not user:
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match="expected a port that this user may listen at; Permission denied"):
            claimed("127.0.0.1:81", "--coordinator", print).__enter__()
    finally:
        os.seteuid(user)


def test_a_name_that_other_machines_do_not_reach_is_said(monkeypatch):
    """As on a machine that knows its own name as an address of the loopback's."""
    port, said = free_port(), []
    local = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: local)
    for host in ("127.0.0.1", "localhost", "node1"):
        with claimed(f"{host}:{port}", "--coordinator", said.append):
            pass
    assert len(said) == 1
    assert said[0].startswith(f"--coordinator node1:{port}: on this machine node1 is 127.0.0.1, which no other machine")
