"""Where the page's server listens, and by which names browsers may call it."""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """Where the server listens, and how browsers call it.

    Attributes:
        host: The address that it listens on.
        port: The port; 0 takes a free one.
        public_url: What browsers see where a proxy stands between; None for the server itself.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    public_url: str | None = None

    def __post_init__(self) -> None:
        if self.public_url is not None:
            parts = urlsplit(self.public_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError(
                    f"the public URL must be an address as https://rank.example.org/; got {self.public_url!r}"
                )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host == "localhost" or (_is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback)

    @property
    def is_encrypted(self) -> bool:
        """Whether browsers come by HTTPS."""
        return self.public_url is not None and self.public_url.startswith("https:")

    def link(self, port: int) -> str:
        """The page's address, with a slash at its end."""
        if self.public_url is not None:
            return self.public_url.rstrip("/") + "/"
        host = _own_address() if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def admits(self, host: str, reached: str | None) -> bool:
        """Whether a request may name this host: by another name a foreign page would read what is ours (rebinding).

        Args:
            host: The name, without the port, which a tunnel may change.
            reached: Address of this machine that the request came in at.
        """
        names = {self.host.lower(), *LOOPBACK_NAMES}
        if self.public_url is not None:
            names.add(urlsplit(self.public_url).hostname)
        if not self.is_loopback:
            names |= {socket.gethostname().lower(), socket.getfqdn().lower(), (reached or "").lower()}
        return host.lower() in names


def _own_address() -> str:
    """The address of this machine that others on its network reach; its name if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Asks the system for a way to there, an address for documentation, and sends nothing.
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
