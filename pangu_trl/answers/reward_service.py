"""A reward that another process computes: JSON over HTTP, with the standard library alone.

The service gets a POST request for all answers at a time, and answers with as many scores:

    {"prompts": [...], "completions": [...], "columns": {"name": [...], ...}}   ->   {"scores": [1.0, ...]}

recipes/reward_server.py is such a service.
"""

import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)

# Waits between tries in seconds: this, doubled each time.
FIRST_WAIT = 1.0
# What the service may recover from: too many requests, or a failure on its side.
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_QUOTE = 300


def is_url(spec: str) -> bool:
    """Whether a reward or judge is named by the address of a service."""
    return spec.startswith(("http://", "https://"))


class RewardService:
    """Asks a reward service for scores; takes and gives what a Python reward does.

    Args:
        url: Where it listens, `http://` or `https://`.
        timeout: Seconds to wait for the scores of one call.
        retries: How often a call is tried again that failed in a way that may pass: no connection, a timeout, or one
            of PASSING_STATUS.

    Raises:
        ValueError: The address is none, or a number is out of range.
    """

    def __init__(self, url: str, timeout: float = 60.0, retries: int = 3) -> None:
        if not is_url(url) or url.count("/") < 2 or not url.split("//", 1)[1].strip("/"):
            raise ValueError(f"reward service: expected an address as http://HOST:PORT/PATH; got {url!r}")
        if timeout <= 0 or retries < 0:
            raise ValueError(
                f"reward service {url}: timeout must be greater than 0 and retries 0 or more; got {timeout} and "
                f"{retries}"
            )
        self.url, self.timeout, self.retries = url, timeout, retries
        self.__name__ = "service"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        """Scores N completions; columns that JSON cannot hold are refused by name.

        Raises:
            ValueError: The service refuses, fails for good, or answers with something else than JSON of a list of
                scores; whether there are N finite ones is checked by the caller.
        """
        body = {"prompts": list(prompts), "completions": list(completions), "columns": columns}
        try:
            content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (TypeError, ValueError) as error:
            raise ValueError(f"reward service {self.url}: the records cannot be sent as JSON: {error}") from error
        answer = self._post(content)
        try:
            return json.loads(answer)["scores"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f'reward service {self.url}: must answer with JSON like {{"scores": [1.0, ...]}}; got {_quoted(answer)}'
            ) from error

    def _post(self, content: bytes) -> bytes:
        request = urllib.request.Request(self.url, content, {"Content-Type": "application/json"})
        for attempt in range(self.retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return response.read()
            except urllib.error.HTTPError as error:
                flaw = f"{error.code} {error.reason}: {_quoted(error.read())}"
                if error.code not in PASSING_STATUS:
                    raise ValueError(f"reward service {self.url}: refused the request with {flaw}") from error
            except OSError as error:
                # No connection, one that broke, or a timeout.
                flaw = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt < self.retries:
                wait = FIRST_WAIT * 2**attempt
                logger.warning("Reward service %s: %s. Trying again in %g seconds.", self.url, flaw, wait)
                time.sleep(wait)
        raise ValueError(
            f"reward service {self.url}: no scores after {self.retries + 1} tries of {self.timeout:g} seconds; the "
            f"last failed with: {flaw}. Is it running, and reachable from here?"
        )


def _quoted(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "...")
