"""What must not leave the machine, in every kind of file, and what may: tables over both."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pangu_trl.hub.contents import decode
from pangu_trl.hub.private_data import refuse_private_data

# Made up, in the form that each service gives its own.
LETTERS = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0eF3hJ6"
HEX = "0123456789abcdef0123456789abcdef01234567"
AWS = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzzKEY"
# A line of text, the part of it that no message may show, and what the message calls it.
SECRETS = {
    "hub": (f"hf_{LETTERS[:34]}", LETTERS[:34], r"token of the Hub \(hf_\.\.\.\)"),
    "hub oauth": ("hf_oauth_eyJhbGciOiJ.IUz-I1_Ni", "eyJhbGciOiJ", r"token of the Hub \(hf_oauth_\.\.\.\)"),
    "hub organisation": (f"api_org_{LETTERS[:34]}", LETTERS[:34], r"token of the Hub \(api_org_\.\.\.\)"),
    "github": (f"ghp_{LETTERS}", LETTERS, r"token of GitHub \(ghp_\.\.\.\)"),
    "github oauth": (f"gho_{LETTERS}", LETTERS, r"token of GitHub \(gho_\.\.\.\)"),
    "github fine": (f"github_pat_11ABCDEFG0_{LETTERS}", LETTERS, r"token of GitHub \(github_pat_\.\.\.\)"),
    "openai": (f"sk-{LETTERS}", LETTERS, r"API key .*\(sk-\.\.\.\)"),
    "openai project": (f"sk-proj-{LETTERS}_-x", LETTERS, r"API key .*\(sk-proj-\.\.\.\)"),
    "aws id": ("AKIAQWERTYUIOPASDFGH", "QWERTYUIOP", r"AWS access key \(AKIA\.\.\.\)"),
    "aws secret": (f"aws_secret_access_key = {AWS}", AWS, r"AWS secret key \(\.\.\.\)"),
    "modelscope": ("ms-3f1c2b4a-11aa-42bb-8c3d-0123456789ab", "3f1c2b4a", r"token of ModelScope \(ms-\.\.\.\)"),
    "modelscope old": ("MODELSCOPE_API_TOKEN=3f1c2b4a-11aa-42bb-8c3d-0123456789ab", "3f1c2b4a", "password or key"),
    "wandb": (f"WANDB_API_KEY={HEX}", HEX, "API key of wandb"),
    "wandb login": (f"wandb login {HEX}", HEX, "API key of wandb"),
    "private key": ("-----BEGIN OPENSSH PRIVATE KEY-----", "OPENSSH", "private key"),
    "address": ("git clone https://li:geheim7@example.org/x.git", "geheim7", "password in an address"),
    "setting": ("api_key: abcd1234efgh5678", "abcd1234", "password or key"),
    "anthropic": (f"sk-ant-api03-{LETTERS}-{LETTERS}AA", LETTERS, r"API key .*\(sk-ant-\.\.\.\)"),
    "openrouter": (f"sk-or-v1-{HEX}", HEX, r"API key .*\(sk-or-\.\.\.\)"),
    "gitlab runner": (f"glrtr-{LETTERS[:20]}", LETTERS[:20], r"token of GitLab \(glrtr-\.\.\.\)"),
    "slack app": (f"xapp-1-A0123-{LETTERS}", LETTERS, r"token of Slack \(xapp-\.\.\.\)"),
    "google oauth": (f"GOCSPX-{LETTERS[:28]}", LETTERS[:28], r"API key of Google \(GOCSPX-\.\.\.\)"),
    "azure storage": (f"AccountKey={LETTERS}{LETTERS}==", LETTERS, "a key of Azure"),
    "azure signature": (f"https://a.blob.core.windows.net/c?sv=2&sig={LETTERS}", LETTERS, "token in an address"),
    "access token": (f"https://a.example.org/x?access_token={LETTERS}", LETTERS, "token in an address"),
    "slack webhook": (f"https://hooks.slack.com/services/T0/B0/{LETTERS}", LETTERS, "the address of a webhook"),
    "feishu webhook": ("https://open.feishu.cn/open-apis/bot/v2/hook/3f1c2b4a-11aa-42bb-8c3d-0", "3f1c2b4a", "webhook"),
    "xai": (f"xai-{LETTERS}{LETTERS}", LETTERS, r"an API key \(xai-\.\.\.\)"),
    "stripe": (f"sk_test_{LETTERS}", LETTERS, r"an API key \(sk_test_\.\.\.\)"),
    "sendgrid": (f"SG.{LETTERS[:22]}.{LETTERS}{LETTERS[:7]}", LETTERS, r"an API key \(SG\.\.\.\.\)"),
    "zhipu": (f"{HEX[:32]}.{LETTERS[:16]}", LETTERS[:16], "an API key of Zhipu"),
    "telegram": (f"123456789:AA{LETTERS[:33]}", LETTERS[:33], "a token of a Telegram bot"),
    "modelscope login": ("api.login('3f1c2b4a-11aa-42bb-8c3d-0123456789ab')", "3f1c2b4a", "token of ModelScope"),
    "ssh2 key": ("---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----", "SSH2", "private key"),
    "putty key": ("PuTTY-User-Key-File-3: ssh-ed25519", "User-Key", "private key"),
    "token as a name": (f"git clone https://{LETTERS}@example.org/x.git", LETTERS, "password in an address"),
    "netrc": ("machine example.org login li password geheim7", "geheim7", "password of a command or of .netrc"),
    "curl": ("curl -u li:geheim7 https://example.org", "geheim7", "password of a command or of .netrc"),
    "basic": ("Authorization: Basic bGk6Z2VoZWltN2dlaGVpbTc=", "bGk6Z2", "password of a command or of .netrc"),
    "password": ("password: geheim7!", "geheim7", r"a password \(\.\.\.\)"),
    "Chinese password": ("密码：geheim77", "geheim77", r"a password \(\.\.\.\)"),
    "aws session": (f"aws_session_token = {LETTERS}//{LETTERS}==", LETTERS, "password or key"),
    "variable of a key": (f"AZURE_OPENAI_KEY={HEX[:32]}", HEX[:32], "password or key"),
    "kaggle": (f'{{"username": "li", "key": "{HEX[:32]}"}}', HEX[:32], "an API key of Kaggle"),
    "twilio": (f"SK{HEX[:32]}", HEX[:32], r"a key or account of Twilio \(SK\.\.\.\)"),
    "mysql": ("mysql -h db -u li -pgeheim7 reviews", "geheim7", "password of a command or of .netrc"),
    "sshpass": ("sshpass -p 'geheim7!' ssh li@host", "geheim7", "password of a command or of .netrc"),
    "redis": ("redis-cli -h db -a geheim77", "geheim77", "password of a command or of .netrc"),
    "cookie": (f"token={LETTERS}", LETTERS, "password or key"),
}
PATHS = {
    "home": ("/home/li/model", "/home/li/model"),
    "home with a space": ("Trained in /home/li wei/model.", "/home/li"),
    "root": ("See /root/runs/a.", "/root/runs/a"),
    "any folder": ("From /srv/secret/x.jsonl, cleaned.", "/srv/secret/x.jsonl"),
    "unknown folder": ("(/gpfs01/li/x)", "/gpfs01/li/x"),
    "spaces in quotes": ('the data "/My Data/set one/x.json" of', "/My Data/set one/x.json"),
    "spaces after a key": ("data: /my data/set one/x", "/my data/set one/x"),
    "after Chinese": ("模型在/data/li/模型里。", "/data/li/模型里"),
    "Chinese": ("见 /数据/李/模型。", "/数据/李/模型"),
    "option": ("run --data=/scratch9/li/x", "/scratch9/li/x"),
    "link": ("[log](/home/li/log.txt)", "/home/li/log.txt"),
    "drive": (r"on C:\Users\li\x", r"C:\\Users\\li\\x"),
    "drive, slashes": ("on D:/data/li", "D:/data/li"),
    "UNC": (r"on \\server\share\data", r"\\\\server\\share\\data"),
    "share": ("on //nas01/share/li/x", "//nas01/share/li/x"),
    "address": ("see file:///srv/li/x", "file:///srv/li/x"),
    "address of a host": ("see file://nas/li/x", "file://nas/li/x"),
    "somebody else": ("in ~li/models", "~li/models"),
    "spaces in a sentence": ("The data in /My Data/set one/x.json is", "/My Data/set one/x.json'"),
    "UNC in code": (r'x = "\\\\server\\share\\li"', r"\\\\\\\\server\\\\share"),
    "UNC of a drive": (r"on \\nas01.corp\d$\li", r"\\\\nas01.corp\\d$\\li"),
    "file address with a host": ("FILE://localhost/srv/li", "FILE://localhost/srv/li"),
    "escaped": ("open%2Fhome%2Fli%2Fx", "%2Fhome%2Fli%2Fx"),
    "cluster": ("hdfs://nn01:9000/user/li/x", "hdfs://nn01:9000/user/li/x"),
    "bucket": ("from s3://li-private/x", "s3://li-private/x"),
}
# Every one a text, whatever its name says; and a pickle.
NAMES = ["README.md", "LICENSE", "a.yaml", "a.csv", "run.sh", "train.log", "a.txt", "a.py", "a.jinja", "a.toml", ".env"]
WRAPPERS = {
    "text": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-le": lambda text: ("some text here\n" + text).encode("utf-16-le"),
    "utf-16-be": lambda text: ("some text here\n" + text).encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
    "gb18030": lambda text: ("模型的说明。\n" + text).encode("gb18030"),
    "latin-1": lambda text: b"caf\xe9 \xe9t\xe9\n" + text.encode("latin-1", errors="replace"),
}


def refuse(name: str, content: bytes, tmp_path: Path, **options):
    refuse_private_data({name: content}, tmp_path, **options)


@pytest.mark.parametrize("secret", SECRETS)
def test_every_secret_is_found_in_every_kind_of_file_and_never_shown(tmp_path, secret):
    line, private, found = SECRETS[secret]
    for name in NAMES:
        with pytest.raises(ValueError, match=rf"{name}, line 2: .*{found}") as refusal:
            refuse(name, f"first\n{line}\nlast\n".encode(), tmp_path)
        assert private not in str(refusal.value), name
    for encoding, wrap in WRAPPERS.items():
        if encoding != "latin-1" or line.isascii():
            with pytest.raises(ValueError, match=rf"notes: .*{found}|notes, line \d: .*{found}"):
                refuse("notes", wrap(f"first\n{line}\nlast\n"), tmp_path)
    for name in ("a.bin", "a.pkl", "vocab.model") if line.isascii() else ():
        with pytest.raises(ValueError, match=found):
            refuse(name, bytes(range(256)) * 3 + b"\0" + line.encode() + b"\0" + bytes(64), tmp_path)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_found_in_every_kind_of_text(tmp_path, path):
    line, shown = PATHS[path]
    for name in NAMES:
        with pytest.raises(ValueError) as refusal:
            refuse(name, f"first\n{line}\nlast\n".encode(), tmp_path)
        assert f"{name}, line 2: a path of somebody's machine ('{shown}" in str(refusal.value)
    for encoding, wrap in WRAPPERS.items():
        if encoding != "latin-1" or line.isascii():
            with pytest.raises(ValueError, match="a path of somebody's machine"):
                refuse("notes", wrap(f"first\n{line}\nlast\n"), tmp_path)


@pytest.mark.parametrize("secret", SECRETS)
def test_json_names_the_key_of_a_secret_wherever_it_stands(tmp_path, secret):
    line, private, found = SECRETS[secret]
    for content in ({"a": {"b": ["x", line]}}, {"a": {line: 1}}):
        with pytest.raises(ValueError, match=rf"config.json, key 'a.*{found}") as refusal:
            refuse("config.json", json.dumps(content).encode(), tmp_path)
        assert private not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"a": {"b": "/home/li wei/x y"}}, "key 'a.b'"),
        ({"a": {"b": "~/models/x"}}, "key 'a.b'"),
        ({"a": [1, "/nas/x"]}, r"key 'a\[1\]'"),
        ({"a": {"/data/li/x": 1}}, "key 'a'"),
        ({"/data/li/x": 1}, "key 'the top'"),
        ({"a": r"C:\temp"}, "key 'a'"),
        ({"a": r"\\server\x"}, "key 'a'"),
        ({"a": "trained on file:///x/y"}, "key 'a'"),
        ({"wandb": {"key": HEX}}, "key 'wandb.key': an API key of wandb"),
        ({"aws_secret_access_key": AWS}, "key 'aws_secret_access_key': an AWS secret key"),
        ({"hub_token": LETTERS}, "key 'hub_token': a password or key"),
    ],
)
def test_json_names_the_key_of_a_path_or_setting(tmp_path, content, place):
    for name in ("config.json", "notes", "a.ipynb"):
        with pytest.raises(ValueError, match=f"{name}, {place}"):
            refuse(name, json.dumps(content).encode(), tmp_path)
    with pytest.raises(ValueError, match=f"a.jsonl, line 2, {place}"):
        refuse("a.jsonl", b'{"a": 1}\n' + json.dumps(content).encode(), tmp_path)


def test_json_hides_nothing_behind_a_key_that_stands_twice_or_an_escape(tmp_path):
    with pytest.raises(ValueError, match="key 'a': a path"):
        refuse("config.json", b'{"a": "/data/li/x", "a": "y"}', tmp_path)
    with pytest.raises(ValueError, match="key 'a': a path"):
        refuse("config.json", rb'{"a": "\/data\/l\u0069\/x"}', tmp_path)
    with pytest.raises(ValueError, match="line 1: a path"):
        refuse("config.json", b'{"a": "/data/li/x", ', tmp_path)


def test_the_header_of_a_safetensors_file_counts(tmp_path):
    tensors = {"weight": torch.zeros(2)}
    for metadata, found in (
        ({"base": "/data/li/x"}, "key '__metadata__.base': a path"),
        ({"args": json.dumps({"dir": "/home/li/x"})}, "key '__metadata__.args': a path"),
        ({"note": f"hf_{LETTERS[:34]}"}, r"key '__metadata__.note': an access token of the Hub"),
    ):
        save_file(tensors, tmp_path / "m.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match=found):
            refuse_private_data({"m.safetensors": tmp_path / "m.safetensors"}, tmp_path)
    # Numbers that happen to be letters are weights.
    text = b"/home/li/secret/model".ljust(24)
    save_file({"weight": torch.frombuffer(bytearray(text), dtype=torch.uint8)}, tmp_path / "m.safetensors")
    refuse_private_data({"m.safetensors": tmp_path / "m.safetensors"}, tmp_path)


def test_own_places_are_found_however_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/li")
    with pytest.raises(ValueError, match="line 1: a path of somebody's machine .'/li'"):
        refuse("README.md", b"Trained in /li.", tmp_path)
    with pytest.raises(ValueError, match="a path of somebody's machine"):
        refuse("README.md", f"Trained in {tmp_path}.".encode(), tmp_path)
    refuse("README.md", b"a/li /lisbon /li-x", tmp_path)


def test_a_file_that_is_no_text_is_searched_beyond_its_first_part(tmp_path):
    noise = bytes(range(256)) * 17_000
    for content in ("/home/li/runs/x".encode("utf-16-le"), b"\1/data/li/x"):
        # Across the end of the first 4 MiB.
        (tmp_path / "a.bin").write_bytes(noise[: (1 << 22) - 7] + content + noise[:1000])
        with pytest.raises(ValueError, match="a.bin: a path"):
            refuse_private_data({"a.bin": tmp_path / "a.bin"}, tmp_path)
    refuse("a.bin", noise[:100_000] + b" /usr/lib/x", tmp_path)


def test_the_name_of_a_file_counts_and_findings_are_counted(tmp_path):
    with pytest.raises(ValueError, match=r"its name holds an access token of the Hub \(hf_\.\.\.\)"):
        refuse(f"images/hf_{LETTERS[:34]}.png", b"x", tmp_path)
    lines = "\n".join(f"/home/user{number}/x" for number in range(30))
    with pytest.raises(ValueError, match="and 10 more"):
        refuse("README.md", lines.encode(), tmp_path)


def test_a_path_is_public_where_somebody_says_so(tmp_path):
    text = b"Served at /models/v2/chat and /models/v3.x/chat."
    with pytest.raises(ValueError, match="/models/v2/chat"):
        refuse("README.md", text, tmp_path)
    refuse("README.md", text, tmp_path, public_paths=["/models"])
    with pytest.raises(ValueError, match="/models/v3.x/chat"):
        refuse("README.md", text, tmp_path, public_paths=["/models/v2/chat"])
    with pytest.raises(ValueError, match="no file names '/model'"):
        refuse("README.md", b"nothing", tmp_path, public_paths=["/model"])


@pytest.mark.parametrize(
    "text",
    [
        "and/or, he/she, km/h, 2024/11/28, 1/2/3, 是/否/也许",
        "https://huggingface.co/a/b http://localhost:8000/v1/x [docs](/docs/hub/models) <a href='/a/b'>",
        "#!/usr/bin/env python\n./a/b ../c/d a/b/c ~/.cache/x/y /path/to/model /dev/null `/v1/chat/completions`",
        "{{ '/no_think' }} </tool_call> <br/> /think or /no_think",
        "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxx https://user:password@host https://${USER}:${TOKEN}@host sk-...",
        f"commit {HEX}, task-abcdefghijklmnopqrstuvwxyz, https://wandb.ai/li/runs/abc",
        'api_key=os.environ["API_KEY"] password=getpass.getpass() hub_token: training_args.hub_token',
        "Q:\\nWhat?\\nA:\\n",
        "password: YOUR_PASSWORD, Password: ********, pwd=$PWD, 密码：<密码>, password = read_secret(1), ?token=TOKEN",
        "https://example.org/a?key=value&sort=asc#x https://user@example.org/x https://host:8080/@scope/pkg",
        "curl -u $USER:$PASSWORD https://x.org; wget -O model.bin; login and password; SG.1 xai-2 dapi, Basic English",
        "use /think and /no_think, and/or this. The file model.safetensors, 12345678:AAB, hvs., ABI_KEY=abc, 1.0.json",
        "max_new_tokens: 1024, pad_token=<pad>, eos_token_id: 151643, token: eot, secret: none, sha256 = " + HEX,
        f"// see //TODO/later, mysql -p db, mysql -u li -p, monkey: {HEX[:32]}, RISK{HEX[:32]}, //cdn.org/data/x.js",
        "bos_token: <s>, pad_token: <pad>, eos_token: <|endoftext|>",
    ],
)
def test_what_only_looks_private_passes(tmp_path, text):
    for name in ("README.md", "modeling.py", "chat_template.jinja"):
        if not (name == "README.md" and "\\n" in text):
            refuse(name, text.encode(), tmp_path)
    refuse("tokenizer_config.json", json.dumps({"chat_template": text + "\n"}).encode(), tmp_path)


def test_own_code_and_documents_pass(tmp_path):
    root = Path(__file__).parents[2]
    paths = [*(root / "pangu_trl" / "gptpangu").glob("*.py"), *(root / "data_cards").glob("*.md"), root / "README.md"]
    refuse_private_data({str(path.relative_to(root)): path for path in paths}, tmp_path)


def test_a_byte_level_vocabulary_raises_no_alarm_but_what_is_beside_it_does(tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    # Many times over, so that whole paths become tokens as in vocabularies of code.
    lines = ["/usr/local/lib /home /root /Users file:/// C:\\ /dev/null /home/ubuntu\n", "http://a.b/c/d/e /var/log\n"]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(lines * 50, vocab_size=400)
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] |= {"/usr/local/lib": 900, "/home": 901, "/home/": 902, "/data/li": 903, "/root": 904}
    refuse("tokenizer.json", json.dumps(content).encode(), tmp_path)
    refuse("vocab.json", json.dumps(content["model"]["vocab"]).encode(), tmp_path)
    for key, value, place in (
        ("added_tokens", [{"content": "/data/li/x"}], r"key 'added_tokens\[0\].content'"),
        ("source", "/data/li/x", "key 'source'"),
        ("model", content["model"] | {"vocab": {"/home/li/secret/x": 5}}, "key 'model.vocab'"),
        ("model", content["model"] | {"vocab": {f"hf_{LETTERS[:34]}": 5}}, "key 'model.vocab'"),
    ):
        with pytest.raises(ValueError, match=f"tokenizer.json, {place}"):
            refuse("tokenizer.json", json.dumps(content | {key: value}).encode(), tmp_path)


def test_the_official_vocabulary_raises_no_alarm(tmp_path):
    pcl_pangu = pytest.importorskip("pcl_pangu")
    path = Path(pcl_pangu.__path__[0]) / "tokenizer" / "bpe_4w_pcl" / "vocab.model"
    # It names the place in its maker's home folder where it was made.
    assert b"/home/" in path.read_bytes()
    refuse_private_data({"vocab.model": path}, tmp_path)


def test_a_vocabulary_that_was_made_here_does_not_say_where(tmp_path):
    import sentencepiece

    corpus = tmp_path / "corpus of li.txt"
    corpus.write_text("some words of a text\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "m"), vocab_size=30, hard_vocab_limit=False, minloglevel=2
    )
    with pytest.raises(ValueError, match="tokenizer.model, key 'trainer_spec': a path .*corpus of li.txt"):
        refuse_private_data({"tokenizer.model": tmp_path / "m.model"}, tmp_path / "elsewhere")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"])
def test_texts_are_read_in_their_encoding(encoding):
    text = "Das Modell, 模型: hello world, in a text with ASCII enough.\n"
    assert decode(text.encode(encoding)) == text
    assert decode(b"") == ""


def test_a_file_that_says_it_is_safetensors_and_is_not_is_searched_all_the_same(tmp_path):
    for content in (b"/home/li/runs/x\n", struct.pack("<Q", 5) + b"{{{{{\0\0\0/home/li/runs/x\0\0"):
        (tmp_path / "m.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="m.safetensors.*: a path"):
            refuse_private_data({"m.safetensors": tmp_path / "m.safetensors"}, tmp_path)
