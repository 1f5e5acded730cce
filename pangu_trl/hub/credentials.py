"""Credentials in a text: tokens and keys that services hand out, private keys, passwords in addresses.

Own patterns rather than a library: detect-secrets 1.5 (its last release is of 2024) knows neither the tokens of the
Hub, ModelScope and wandb nor today's of GitHub (`github_pat_`) and OpenAI (`sk-proj-`), reads line by line, which takes
half a minute for a large tokenizer.json, and guesses by entropy, which a vocabulary is full of.
"""

import re
from collections.abc import Iterator

# What stands before a token must not be a part of the same word.
_START, _END = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"
# Between the name of a setting and its value: JSON, YAML, shell, command lines.
_IS = r"[\"'`]?\s{0,3}(?:[:=]|=>|\s)\s{0,3}[\"'`]?"


def _token(pattern: str) -> re.Pattern[str]:
    return re.compile(_START + f"(?P<secret>{pattern})")


# By what is found, in the order of precedence: the first that matches a place names it. The pattern is tried where one
# of the strings beside it stands in whatever case, since strings are found a hundred times faster than patterns.
CREDENTIALS: dict[str, tuple[tuple[str, ...], re.Pattern[str]]] = {
    "an access token of the Hub": (
        ("hf_", "api_org_"),
        _token(r"hf_(?:oauth|jwt)_[\w.~-]{16,}|hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}"),
    ),
    "an access token of GitHub": (
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        _token(r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,}"),
    ),
    "an access token of GitLab": (
        ("glpat-", "gldt-", "glrt-", "glcbt-", "glptt-", "glsoat-"),
        _token(r"gl(?:pat|dt|rt|cbt|ptt|soat)-[\w.-]{20,}"),
    ),
    "an API key (sk-...)": (
        ("sk-",),
        _token(r"sk-(?:proj|svcacct|admin|None|ant|or|lf|api)\w*-[\w-]{20,}|sk-[A-Za-z0-9_]{20,}"),
    ),
    "an AWS access key": (
        ("akia", "asia", "abia", "acca", "a3t"),
        _token(r"(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}" + _END),
    ),
    "an AWS secret key": (
        ("aws", "secret"),
        re.compile(
            r"(?i:aws|secret.{0,4}access|secret.{0,4}key)[^\n]{0,40}?"
            rf"{_IS}(?P<secret>[A-Za-z0-9/+]{{40}})(?![A-Za-z0-9/+=])"
        ),
    ),
    "an access token of ModelScope": (("ms-",), _token(r"ms-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")),
    # The second line is that of a .netrc, whose password is up to two lines below the host.
    "an API key of wandb": (
        ("wandb",),
        re.compile(
            rf"(?P<secret>wandb_v\d_\w{{20,}})|(?i:wandb)"
            rf"(?:[^\n]{{0,40}}?|[^\n]{{0,20}}\n[^\n]{{0,60}}\n?[^\n]{{0,20}}?){_IS}(?P<key>[0-9a-f]{{40}}){_END}"
        ),
    ),
    "an access token of Slack": (
        ("xoxa-", "xoxb-", "xoxe-", "xoxp-", "xoxr-", "xoxs-"),
        _token(r"xox[abeprs]-[\w-]{10,}"),
    ),
    "an API key of Google": (("aiza",), _token(r"AIza[\w-]{35}")),
    "an access key of Alibaba Cloud": (("ltai",), _token(r"LTAI[A-Za-z0-9]{12,26}" + _END)),
    "an access key of Tencent Cloud": (("akid",), _token(r"AKID[A-Za-z0-9]{32}" + _END)),
    "a token of a package index": (("npm_", "pypi-"), _token(r"npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{40,}")),
    "an API key": (
        ("gsk_", "r8_", "sk_live_", "rk_live_", "nvapi-"),
        _token(r"gsk_[A-Za-z0-9]{40,}|r8_[A-Za-z0-9]{37}|[sr]k_live_[A-Za-z0-9]{16,}|nvapi-[\w-]{40,}"),
    ),
    "a signed token (JWT)": (("eyj",), _token(r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")),
    "a private key": (
        ("-----begin",),
        re.compile(r"(?P<secret>-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----)"),
    ),
    "a password in an address": (
        ("://",),
        re.compile(r"://[^\s/:@\"'<>]{0,64}:(?P<secret>[^\s/@\"'<>]{1,256})@(?=[\w\[])"),
    ),
    "a password or key": (
        ("api", "secret", "access", "auth", "hub", "hf", "modelscope", "client", "passw", "bearer"),
        re.compile(
            r"(?i:api[_-]?key|api[_-]?token|secret[_-]?key|access[_-]?key|access[_-]?token|auth[_-]?token|"
            r"hub[_-]?token|hf[_-]?token|modelscope[\w-]{0,16}token|client[_-]?secret|password|passwd|bearer)"
            rf"{_IS}(?P<secret>(?=[A-Za-z_+/-]{{0,255}}\d)(?=[\d_+/-]{{0,255}}[A-Za-z])[A-Za-z0-9_+/-]{{16,}}={{0,2}})"
            r"(?![\w.(\[])"
        ),
    ),
}
# How much of a secret a message may show: what all tokens of the kind begin with.
_KIND_PREFIX = re.compile(
    r"hf_(?:oauth_|jwt_)?|api_org_|gh[pousr]_|github_pat_|gl[a-z]+-|sk-(?:proj-|svcacct-|admin-|ant-|or-)?|A[KS]IA|ABIA|ACCA"
    r"|ms-|wandb_v\d_|xox[a-z]-|AIza|LTAI|AKID|npm_|pypi-|gsk_|r8_|[sr]k_live_|nvapi-|eyJ"
)
# What documentation writes where the reader's own secret goes.
_PLACEHOLDER = re.compile(
    r"(?i)(?:your|my|the|some|example)?[_-]?(?:password|passwd|pass|pw|pwd|token|key|secret|api[_-]?key)(?:[_-]?here)?"
    r"|[.*]+|\$.*|%.*|\{.*\}|\[.*\]"
)


def find_credentials(text: str) -> Iterator[tuple[int, int, str]]:
    """Finds credentials in a text.

    Yields:
        Start and end of the secret itself, and what it is.
    """
    taken: list[tuple[int, int]] = []
    # The one letter whose small form is two characters long.
    lowered = text.replace("İ", "I").lower()
    for what, (beginnings, pattern) in CREDENTIALS.items():
        for match in _matches(text, lowered, beginnings, pattern):
            group = next(name for name, value in match.groupdict().items() if value is not None)
            start, end = match.span(group)
            secret = match[group]
            # "hf_xxxxxxxxxxxxxxxxxxxx" stands for a token in documentation.
            body = secret[len(_kind_prefix(secret)) :]
            is_filler = what not in ("a password in an address", "a private key") and len(set(body)) < 5
            if is_filler or _PLACEHOLDER.fullmatch(secret):
                continue
            if not any(first < end and start < last for first, last in taken):
                taken.append((start, end))
                yield start, end, what


def _matches(text: str, lowered: str, beginnings: tuple[str, ...], pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    for beginning in beginnings:
        position = lowered.find(beginning)
        while position >= 0:
            if match := pattern.match(text, position):
                yield match
            position = lowered.find(beginning, position + 1)


def masked(secret: str) -> str:
    """What a message may show of a secret: the beginning that all of its kind share."""
    return f"{_kind_prefix(secret)}..."


def without_credentials(text: str) -> str:
    """A text in which every credential is masked, for messages."""
    for start, end, _ in sorted(find_credentials(text), reverse=True):
        text = text[:start] + masked(text[start:end]) + text[end:]
    return text


def _kind_prefix(secret: str) -> str:
    match = _KIND_PREFIX.match(secret)
    return match[0] if match else ""
