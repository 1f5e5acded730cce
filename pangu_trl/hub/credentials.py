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


_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


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
        ("glpat-", "gldt-", "glrt-", "glrtr-", "glcbt-", "glptt-", "glsoat-", "glft-", "glimt-", "glagent-"),
        _token(r"gl(?:pat|dt|rt|rtr|cbt|ptt|soat|ft|imt|agent)-[\w.-]{20,}"),
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
    "an access token of ModelScope": (
        ("ms-", "login("),
        re.compile(
            rf"{_START}(?P<secret>ms-{_UUID})|(?i:login)\(\s?(?:access_token\s?=\s?)?[\"'](?P<key>{_UUID})[\"']"
        ),
    ),
    # The second line is that of a .netrc, whose password is up to two lines below the host.
    "an API key of wandb": (
        ("wandb",),
        re.compile(
            rf"(?P<secret>wandb_v\d_\w{{20,}})|(?i:wandb)"
            rf"(?:[^\n]{{0,40}}?|[^\n]{{0,20}}\n[^\n]{{0,60}}\n?[^\n]{{0,20}}?){_IS}(?P<key>[0-9a-f]{{40}}){_END}"
        ),
    ),
    "an access token of Slack": (
        ("xoxa-", "xoxb-", "xoxe-", "xoxp-", "xoxr-", "xoxs-", "xapp-"),
        _token(r"xox[abeprs]-[\w-]{10,}|xapp-\d-[\w-]{20,}"),
    ),
    "an API key of Google": (
        ("aiza", "gocspx-", "ya29."),
        _token(r"AIza[\w-]{35}|GOCSPX-[\w-]{20,}|ya29\.[\w-]{20,}"),
    ),
    "a key of Azure": (
        ("accountkey", "sharedaccesskey"),
        re.compile(r"(?i:accountkey|sharedaccesskey)\s?=\s?(?P<secret>[A-Za-z0-9/+]{40,}={0,2})"),
    ),
    # Who knows the address may write there.
    "the address of a webhook": (
        ("hooks.slack.com/", "discord.com/api/webhooks/", "/bot/v2/hook/", "/webhook/send?key=", "/robot/send?access_"),
        re.compile(
            r"(?i:hooks\.slack\.com/\w+|discord\.com/api/webhooks|/bot/v2/hook|/webhook/send\?key=|"
            r"/robot/send\?access_token=)/?(?P<secret>[\w/-]{20,})"
        ),
    ),
    "an access key of Alibaba Cloud": (("ltai",), _token(r"LTAI[A-Za-z0-9]{12,26}" + _END)),
    "an access key of Tencent Cloud": (("akid",), _token(r"AKID[A-Za-z0-9]{32}" + _END)),
    "a token of a package index": (("npm_", "pypi-"), _token(r"npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{40,}")),
    "an API key": (
        (
            *(
                "gsk_",
                "r8_",
                "sk_live_",
                "rk_live_",
                "sk_test_",
                "nvapi-",
                "xai-",
                "pplx-",
                "tgp_v1_",
                "sg.",
                "dckr_pat_",
            ),
            *("hvs.", "hvb.", "dapi", "dop_v1_", "nfp_"),
        ),
        _token(
            r"gsk_[A-Za-z0-9]{40,}|r8_[A-Za-z0-9]{37}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|nvapi-[\w-]{40,}|"
            r"xai-[A-Za-z0-9]{60,}|pplx-[A-Za-z0-9]{40,}|tgp_v1_[\w-]{40,}|SG\.[\w-]{20,24}\.[\w-]{39,}|"
            r"dckr_pat_[\w-]{27,}|hv[sb]\.[\w-]{24,}|dapi[0-9a-f]{32}|dop_v1_[0-9a-f]{64}|nfp_[A-Za-z0-9]{36,}"
        ),
    ),
    # The part behind the dot of what begins with 32 hexadecimal digits.
    "an API key of Zhipu": (
        (".",),
        re.compile(rf"\.(?<=[0-9a-f]{{32}}\.)(?P<secret>(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{{16}}){_END}"),
    ),
    # Of kaggle.json, which says no more than this.
    "an API key of Kaggle": (
        ("key",),
        re.compile(rf"(?i:key(?<![\w-]key)){_IS}(?P<secret>[0-9a-f]{{32}}){_END}"),
    ),
    "a key or account of Twilio": (("sk", "ac"), _token(r"(?:SK|AC)[0-9a-f]{32}" + _END)),
    "a token of a Telegram bot": (
        (":aa",),
        re.compile(r":(?<=\d{8}:)(?P<secret>AA[\w-]{33})(?![\w-])"),
    ),
    "a signed token (JWT)": (("eyj",), _token(r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")),
    "a private key": (
        ("---- begin", "-----begin", "putty-user-key-file"),
        re.compile(
            r"(?P<secret>-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|"
            r"---- BEGIN SSH2 (?:[A-Z]+ )?PRIVATE KEY ----|PuTTY-User-Key-File-\d:)"
        ),
    ),
    "a password in an address": (
        ("://",),
        re.compile(
            r"://(?:[^\s/:@\"'<>]{0,64}:(?P<secret>[^\s/@\"'<>]{1,256})|"
            # A token alone, in the place of the name.
            r"(?P<token>(?=[A-Za-z_-]{0,255}\d)(?=[\d_-]{0,255}[A-Za-z])[\w-]{20,256}))@(?=[\w\[])"
        ),
    ),
    "a signature or token in an address": (
        ("?", "&"),
        re.compile(
            r"[?&](?i:sig|signature|x-amz-signature|x-amz-security-token|access_token|api_?key|token|key|secret)="
            r"(?P<secret>(?=[A-Za-z_%./+-]{0,255}\d)(?=[\d_%./+-]{0,255}[A-Za-z])[\w%./+-]{24,})"
        ),
    ),
    "a password of a command or of .netrc": (
        ("curl", "wget", "login", "authorization", "mysql", "mariadb", "sshpass", "redis-cli"),
        re.compile(
            r"(?i:curl|wget)[ \t][^\n]{0,80}?(?:-u|--user|--password)[ =]?[\"']?(?:[\w.-]+:)?"
            r"(?P<secret>(?=\S{0,64}\d)(?=\S{0,64}[A-Za-z])[^\s\"':/<>${}]{6,})"
            r"|(?i:login)[ \t]+[\w.@-]+\s+(?i:password)[ \t]+(?P<netrc>[^\s\"'<>${}]{6,})"
            # Written without a blank after the option, as these programs want it or take it.
            r"|(?:mysql(?:dump|admin)?|mariadb(?:-dump)?|sshpass|redis-cli)[ \t](?:[^\n]{0,80}?[ \t])?"
            r"(?:-p|-a[ \t])[ \t]?[\"']?"
            r"(?P<option>(?=\S{0,64}\d)(?=\S{0,64}[A-Za-z])[^\s\"'/<>${}-][^\s\"'<>${}]{5,})"
            r"|(?i:authorization)[\"']?\s?[:=]\s?[\"']?(?i:basic)\s(?P<basic>[A-Za-z0-9+/]{12,}={0,2})"
        ),
    ),
    "a password": (
        ("passw", "pwd", "passphrase", "密码", "口令"),
        re.compile(
            r"(?i:password|passwd|pwd|passphrase|密码|口令)[\"']?[ \t]{0,3}(?:[:=：]|=>)[ \t]{0,3}[\"']?"
            r"(?P<secret>(?=[^\s\d()\[\]]{0,64}\d)(?=[^A-Za-z\s()\[\]]{0,64}[A-Za-z])"
            r"[^\s\"'`<>{}()\[\],;，。；$]{8,64}+)(?![(\[])"
        ),
    ),
    "a password or key": (
        ("api", "secret", "access", "auth", "hub", "hf", "modelscope", "client", "session", "token", "bearer", "_key"),
        re.compile(
            r"(?i:api[_-]?key|api[_-]?token|secret[_-]?key|access[_-]?key|access[_-]?token|auth[_-]?token|"
            r"hub[_-]?token|hf[_-]?token|modelscope[\w-]{0,16}token|client[_-]?secret|session[_-]?token|bearer)"
            rf"{_IS}(?P<secret>(?=[A-Za-z_+/-]{{0,255}}\d)(?=[\d_+/-]{{0,255}}[A-Za-z])[A-Za-z0-9_+/-]{{16,}}={{0,2}})"
            r"(?![\w.(\[])"
            # Of a name that says little more only what is as mixed as a token.
            r"|(?:(?i:token|secret)|_KEY)[\"']?[ \t]{0,3}[:=][ \t]{0,3}[\"']?"
            r"(?P<mixed>(?=[A-Za-z_+/-]{0,255}\d[A-Za-z_+/-]{0,255}\d)(?=[\d_+/-]{0,255}[A-Za-z])[A-Za-z0-9_+/-]{24,}={0,2})"
            r"(?![\w.(\[])"
        ),
    ),
}
# How much of a secret a message may show: what all tokens of the kind begin with.
_KIND_PREFIX = re.compile(
    r"hf_(?:oauth_|jwt_)?|api_org_|gh[pousr]_|github_pat_|gl[a-z]+-|sk-(?:proj-|svcacct-|admin-|ant-|or-)?|A[KS]IA|ABIA|ACCA"
    r"|ms-|wandb_v\d_|xox[a-z]-|xapp-|AIza|GOCSPX-|ya29\.|LTAI|AKID|npm_|pypi-|gsk_|r8_|[sr]k_(?:live|test)_|nvapi-|eyJ"
    r"|xai-|pplx-|tgp_v1_|SG\.|dckr_pat_|hv[sb]\.|dapi|dop_v1_|nfp_|SK|AC"
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
