"""Absolute paths in a text: where on somebody's machine something lay.

A path is told from a route of a web site, a fraction or a regular expression by what stands before it and by its first
folder; where a whole value is a path, spaces in it do not end it.
"""

import re
from collections.abc import Iterator

# Folders under which people, groups and their data live; two letters before the slash do not hide them.
_ROOTS = (
    "home|Users|root|work|workspace|data|mnt|media|nfs|scratch|gpfs|lustre|srv|share|shared|export|opt|var|tmp|private|"
    "Volumes|cluster|storage|projects?|kaggle|content|ssd|hdd|disk|raid|cfs|ceph|dfs|juicefs|cache|ckpts?|checkpoints?|"
    "datasets?|models?|code|user|dev/shm|cygdrive|autofs"
)
# What every machine has, and what documentation writes for "somewhere" or for a route.
_PUBLIC = r"(?:usr|bin|sbin|etc|dev(?!/shm)|proc|sys|lib(?:64)?|path|your|some|v\d+|api|docs|blog|papers|spaces)/"
_NAME = r"\s/\\\"'`<>|*?:;,(){}\[\]$^#&!，。；：、！？（）“”‘’「」《》【】…"
_POSIX_PATH = rf"[^{_NAME}]+/[^{_NAME}]+(?:/[^{_NAME}]+)*"
_WINDOWS_NAME = r"[^\s\\/\"'`<>|*?:,;(){}\[\]]+"
_LETTER = r"A-Za-z\u3400-\u9fff"
# A path as the whole of a quoted value or of a line, in which spaces do not end it.
_SPACED = (
    rf"(?!{_PUBLIC})(?=[^/\n]{{0,64}}[{_LETTER}])[^/\n\"'`<>{{}}|*?\\:]{{1,64}}(?<!\s)/"
    r"[^/\s\"'`<>{}|*?\\][^\n\"'`<>{}|*?\\]{0,512}"
)

# Every pattern begins with a letter of its own, which Python searches fast, and then looks back.
_POSIX = re.compile(
    r"/(?<![\w/.~\\<@)\]}$%*+&#?!|^-]/)(?<!\]\(/)(?<!href=[\"']/)(?<!src=[\"']/)"
    rf"(?!{_PUBLIC})(?=[^\s/]{{0,64}}[{_LETTER}]){_POSIX_PATH}"
)
_POSIX_ROOT = re.compile(rf"/(?<![A-Za-z0-9_./~\\-]/)(?=(?:{_ROOTS})/){_POSIX_PATH}")
# "~/x" says nothing about anybody.
_OTHER_HOME = re.compile(rf"~(?<![\w/.~\\)\]-]~)[A-Za-z][\w.-]*/[^{_NAME}]+")
# A backslash may be written twice, as in JSON and in code.
_DRIVE = re.compile(
    rf":(?<=[A-Za-z]:)(?<![A-Za-z0-9_][A-Za-z]:)(?:\\{{1,2}}|/(?!/)){_WINDOWS_NAME}(?:[\\/]{{1,2}}{_WINDOWS_NAME})*"
)
_UNC = re.compile(r"\\\\(?<![\\\w]\\\\)(?:\\\\)?(?=[\w.-]{2})[\w.$-]+(?:\\{1,2}[\w.$ -]{2,})+")
# The same with the slashes of other systems, below what people share; "//" begins comments and addresses, too.
_SHARE = re.compile(rf"//(?<![\w:/.\"'=(]//)[A-Za-z][\w-]+/(?:{_ROOTS})/[\w.-]+(?:/[\w.-]+)*")
_FILE_URL = re.compile(r":(?<=[Ff][Ii][Ll][Ee]:)/{1,3}[^\s/\"'`<>)][^\s\"'`<>)]*")
# Where a cluster or a company keeps its files.
_STORAGE = re.compile(
    r"(?<![A-Za-z0-9])(?:hdfs|viewfs|s3[an]?|gs|oss|obs|cosn?|tos|abfss?|wasbs?|nfs|smb|cifs|afp|sftp)://[\w.@:/-]+"
)
_ESCAPED = re.compile(rf"%2[Ff](?:{_ROOTS})%2[Ff][\w.%-]+")
# In a sentence spaces end a path, but where it goes on to a file of data.
_SENTENCE = re.compile(
    rf"/(?<![\w/.~\\<@)\]}}$%*+&#?!|^:-]/)(?!{_PUBLIC})[\w.-]+(?: [\w.-]+){{1,3}}(?:/[\w.-]+(?: [\w.-]+){{0,3}}){{1,8}}"
    r"\.(?:jsonl?|ndjson|txt|csv|tsv|parquet|arrow|safetensors|bin|pt|pth|ckpt|gguf|ya?ml|ipynb|zip|tar|gz|zst)\b"
)
_QUOTED = re.compile(rf"/(?<=[\"'`]/)(?<!href=[\"']/)(?<!src=[\"']/){_SPACED}(?=[\"'`])")
_LINE = re.compile(rf"(?m:/{_SPACED}$)")
# What may stand on a line before a path that is its only value.
_KEY_OR_BULLET = re.compile(r"[ \t]*(?:[-*][ \t]+)?(?:[\w.-]+[ \t]*[:=][ \t]*)?")
# The end of a line in a string of code, "Q:\n", is no drive.
_ESCAPES = re.compile(r":(?:\\[nrtbfuxv0][^\\/]*)+")

_VALUE = re.compile(
    r"\s*(?:~?/|~/)[^\n{}<>]*[^\s{}<>/\\][/\\][^\n{}<>]+"  # /a/b, ~/a/b, with spaces
    r"|\s*[A-Za-z]:[\\/][^\n{}<>]*[^\s{}<>\\/][^\n{}<>]*"  # C:\a
    r"|\s*\\\\[^\\\n{}<>]+\\[^\n{}<>]+"  # \\server\share
)
# In vocabularies and in files that are no text: only what can hardly be there by chance.
_HOME = re.compile(r"/(?<![\w.~-]/)(?:home|Users|root)/[\w.-]{2,}/[\w.-]{2,}")
_ROOTED = re.compile(rf"/(?<![A-Za-z0-9_./~\\-]/)(?:{_ROOTS})/[\w.-]{{2,}}(?:/[\w.-]+)*", re.ASCII)
_WINDOWS_HOME = re.compile(r":(?<=[A-Za-z]:)(?:\\{1,2}|/)Users(?:\\{1,2}|/)[\w.-]{2,}")


def find_paths(text: str, is_code: bool = False) -> Iterator[tuple[int, int]]:
    r"""Finds absolute paths in a text of any sort.

    Args:
        text: What is searched.
        is_code: Whether `Q:\n` ends a line in a string, however much like a drive it looks.

    Yields:
        Start and end of each.
    """
    taken: list[tuple[int, int]] = []
    for start, end in _candidates(text, is_code):
        if not any(first < end and start < last for first, last in taken):
            taken.append((start, end))
            yield start, end


def _candidates(text: str, is_code: bool) -> Iterator[tuple[int, int]]:
    for match in _FILE_URL.finditer(text):
        yield match.start() - len("file"), match.end()
    for match in _LINE.finditer(text):
        before = text[max(0, match.start() - 80) : match.start()].rpartition("\n")[2]
        if len(before) < 80 and _KEY_OR_BULLET.fullmatch(before):
            yield match.span()
    for match in _DRIVE.finditer(text):
        if not _ESCAPES.fullmatch(match[0]) or (not is_code and match[0].count("\\") > 1):
            yield match.start() - 1, match.end()
    for pattern in (_QUOTED, _SENTENCE, _POSIX_ROOT, _POSIX, _OTHER_HOME, _UNC, _SHARE, _STORAGE, _ESCAPED):
        for match in pattern.finditer(text):
            yield match.span()


def find_home_paths(text: str) -> Iterator[tuple[int, int]]:
    """Finds paths below somebody's home folder, in what may hold any string by chance."""
    for match in _HOME.finditer(text):
        yield match.span()
    for match in _WINDOWS_HOME.finditer(text):
        yield match.start() - 1, match.end()


def find_rooted_paths(text: str) -> Iterator[tuple[int, int]]:
    """Finds paths below the folders of people and of data, in bytes that are no text."""
    yield from (match.span() for match in _ROOTED.finditer(text))
    yield from ((match.start() - 1, match.end()) for match in _WINDOWS_HOME.finditer(text))


def is_path(value: str) -> bool:
    """Whether a value is an absolute path and nothing else."""
    return _VALUE.fullmatch(value) is not None
