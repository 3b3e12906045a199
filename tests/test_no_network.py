"""The tests' own guard: nothing leaves this machine, and what tries to is seen."""

import http.server
import socket
import threading
import urllib.request

import pytest

FAR = "198.51.100.7"  # an address for documentation (RFC 5737)


def tries():
    def connect(address=(FAR, 80)):
        with socket.socket() as one:
            one.settimeout(1)
            one.connect(address)

    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(b"x", (FAR, 53))

    return {
        "connect": connect,
        "name": lambda: connect(("example.org", 80)),
        "look up": lambda: socket.getaddrinfo("example.org", 80),
        "datagram": send,
        "http": lambda: urllib.request.urlopen(f"http://{FAR}/", timeout=1),
    }


@pytest.mark.parametrize("how", tries())
def test_external_connections_are_blocked(how, no_network):
    with pytest.raises(OSError, match="a test reached for"):
        tries()[how]()
    assert no_network
    no_network.clear()  # else this very test would fail


def test_local_servers_are_reachable(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        server.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for host in ("127.0.0.1", "localhost"):
            with urllib.request.urlopen(f"http://{host}:{server.server_port}/") as answer:
                assert answer.status == 200
        server.shutdown()
