"""Downloads from a server in a thread: what is fetched is whole, what is not there is said in one line."""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jvq.models.weights.download import Network, complete, fetch, folder_of
from jvq.models.weights.names import Remote, located

NAME = "timm/deit_tiny_patch16_224.fb_in1k"
CONFIG, WEIGHTS = b'{"num_classes": 1000}', bytes(range(256)) * 1200
SHA = hashlib.sha256(WEIGHTS).hexdigest()


class Site(http.server.ThreadingHTTPServer):
    """A server of ``files``. ``script[path]`` holds what to do instead, one item a request; ``log`` what was asked."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files, self.script, self.log, self.sent, self.let_go = dict(files), {}, [], 0, threading.Event()
        self.etag = '"one"'

    def asked(self, ending):
        return [headers for path, headers in self.log if path.endswith(ending)]

    def handle_error(self, request, client_address):
        pass  # clients hang up on purpose here


class Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.log.append((self.path, dict(self.headers)))
        todo = self.server.script.get(self.path.rsplit("/", 1)[-1], [])
        (todo.pop(0) if todo else serve())(self)

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.server.sent += len(body)


def serve(*headers, keep=None, ranges=True, stall=False, status=200):
    """Answers with the file, or with the part asked for: of that ``keep`` bytes, then silence or the end."""

    def act(handler):
        site = handler.server
        body = site.files.get(handler.path)
        if body is None:
            return handler.answer(404, [])
        code, extra, asked = status, [], handler.headers.get("Range")
        if ranges and asked and handler.headers.get("If-Range") == site.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            code, extra = 206, [("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")]
            body = body[start:]
        length = [] if any(name == "Content-Length" for name, _ in headers) else [("Content-Length", str(len(body)))]
        handler.answer(code, [("ETag", site.etag), *length, *extra, *headers], body[:keep])
        if stall:
            site.let_go.wait(2)

    return act


def status(code, *headers):
    return lambda handler: handler.answer(code, list(headers))


@contextlib.contextmanager
def serving(files):
    with Site(files) as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield site
        finally:
            site.let_go.set()
            site.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_ENDPOINT", "JVQ_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JVQ_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def site():
    base = f"/{NAME}/resolve/main"
    with serving({f"{base}/config.json": CONFIG, f"{base}/model.safetensors": WEIGHTS}) as site:
        yield site


def network(site, **changes):
    return Network(**{"timeout": 0.3, "tries": 3, "pause": 0.001, "token_origin": site.url, **changes})


def get(site, name=NAME, **changes):
    return fetch(located(name, huggingface=site.url, google=site.url), network=network(site, **changes))


def tree(folder):
    """Names and contents of the folder, but for the lock."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"} if folder.is_dir() else {}


BOTH = {"config.json": CONFIG, "model.safetensors": WEIGHTS}


def failing(site, name=NAME, **changes):
    """The one line that fetching ends with."""
    with pytest.raises(ValueError, match="^weights: ") as caught:
        get(site, name, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_fetched_is_what_is_there(site, tmp_path):
    seen = []
    remote = located(NAME, huggingface=site.url)
    folder = fetch(remote, progress=lambda *args: seen.append(args), network=network(site))
    assert folder == tmp_path / "cache/weights/huggingface" / NAME == folder_of(remote)
    assert tree(folder) == BOTH
    assert seen[0] == ("config.json", 0, len(CONFIG))
    assert seen[-1] == ("model.safetensors", len(WEIGHTS), len(WEIGHTS))
    assert complete(remote, folder)


def test_what_is_there_needs_no_network(site, monkeypatch):
    folder = get(site)
    asked = len(site.log)
    monkeypatch.setenv("JVQ_OFFLINE", "1")
    assert get(site) == folder
    assert len(site.log) == asked


def test_files_put_there_by_hand_are_used(site, tmp_path):
    folder = tmp_path / "mine/weights/huggingface/google/vit"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "pytorch_model.bin").write_bytes(WEIGHTS)
    remote = located("hf:google/vit", huggingface=site.url)
    assert fetch(remote, cache=tmp_path / "mine", network=network(site)) == folder
    assert site.log == []


@pytest.mark.parametrize("variable", ["JVQ_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_names_the_first_file_that_lacks(variable, site, monkeypatch, tmp_path):
    monkeypatch.setenv(variable, "1")
    says = failing(site)
    folder = tmp_path / "cache/weights/huggingface" / NAME
    assert f"config.json: not in the cache, and {variable} is set; address: {site.url}/{NAME}/resolve/main/" in says
    assert says.endswith(f"to put it there by hand: {folder}")
    assert site.log == []
    assert not folder.exists()


def test_a_cut_off_transfer_goes_on_where_it_stopped(site):
    site.script["model.safetensors"] = [serve(keep=1000), serve(keep=500)]
    assert tree(get(site, tries=2)) == BOTH, "a try that brings something does not count"
    assert [h.get("Range") for h in site.asked("model.safetensors")] == [None, "bytes=1000-", "bytes=1500-"]
    assert site.sent == len(CONFIG) + len(WEIGHTS), "no byte came twice"


def test_a_later_run_goes_on_where_the_last_stopped(site):
    site.script["model.safetensors"] = [serve(keep=1000), status(503), status(503)]
    says = failing(site)
    assert "model.safetensors: 503 Service Unavailable, after 3 tries" in says
    folder = folder_of(located(NAME))
    assert sorted(tree(folder)) == ["config.json", "model.safetensors.part", "model.safetensors.part.json"]
    assert tree(get(site)) == BOTH
    assert site.sent == len(CONFIG) + len(WEIGHTS)


def test_a_server_without_ranges_sends_all_again(site):
    site.script["model.safetensors"] = [serve(keep=1000), serve(ranges=False)]
    assert tree(get(site)) == BOTH
    assert site.sent == len(CONFIG) + 1000 + len(WEIGHTS)


def test_a_file_that_changed_meanwhile_is_fetched_anew(site):
    path = f"/{NAME}/resolve/main/model.safetensors"
    new = WEIGHTS[::-1]

    def change(handler):
        serve(keep=1000)(handler)
        site.files[path], site.etag = new, '"two"'

    site.script["model.safetensors"] = [change]
    assert tree(get(site))["model.safetensors"] == new
    assert site.asked("model.safetensors")[1]["If-Range"] == '"one"'


@pytest.mark.parametrize("etag", ['W/"weak"', ""])
def test_without_a_reliable_etag_nothing_is_patched_together(etag, site):
    site.etag = etag
    site.script["model.safetensors"] = [serve(keep=1000)]
    assert tree(get(site)) == BOTH
    assert "Range" not in site.asked("model.safetensors")[1]


@pytest.mark.parametrize("note", [None, "{", "[]", '{"etag": 3}'])
def test_a_part_without_a_readable_note_is_begun_anew(note, site):
    folder = folder_of(located(NAME))
    folder.mkdir(parents=True)
    (folder / "model.safetensors.part").write_bytes(b"something old")
    if note:
        (folder / "model.safetensors.part.json").write_text(note)
    assert tree(get(site)) == BOTH


def test_a_part_longer_than_the_file_is_begun_anew(site):
    folder = folder_of(located(NAME))
    folder.mkdir(parents=True)
    (folder / "model.safetensors.part").write_bytes(WEIGHTS + b"more")
    (folder / "model.safetensors.part.json").write_text(json.dumps({"etag": site.etag}))
    site.script["model.safetensors"] = [status(416)]
    assert tree(get(site)) == BOTH


def test_another_part_than_the_one_asked_for_is_begun_anew(site):
    wrong = serve(("Content-Range", "bytes 7-9/10"), status=206, ranges=False)
    site.script["model.safetensors"] = [serve(keep=1000), wrong]
    assert tree(get(site)) == BOTH


def hashes(digest):
    """Headers as Google's, with the digest of the body."""
    encoded = base64.b64encode(digest).decode()
    return ("x-goog-hash", "crc32c=AAAAAA=="), ("x-goog-hash", f"md5={encoded}")


AUGREG = "augreg/Ti_16"


@pytest.fixture
def bucket():
    """A server of one npz, as the AugReg bucket's, and that file's name."""
    file = located(AUGREG).files[0].filename
    with serving({f"/vit_models/augreg/{file}": WEIGHTS}) as site:
        yield site, file


def test_the_md5_of_google_is_checked(bucket):
    site, file = bucket
    site.script[file] = [serve(*hashes(hashlib.md5(WEIGHTS).digest()))]
    assert tree(get(site, AUGREG)) == {file: WEIGHTS}


def test_a_wrong_checksum_leaves_nothing(bucket):
    site, file = bucket
    site.script[file] = [serve(*hashes(b"0" * 16))]
    says = failing(site, AUGREG)
    assert f"md5 is {hashlib.md5(WEIGHTS).hexdigest()}, expected {'30' * 16}; what came was deleted" in says
    assert tree(folder_of(located(AUGREG))) == {}
    assert len(site.log) == 1, "the same bytes would come again"


@pytest.mark.parametrize(("known", "says"), [
    ({"sha256": "0" * 64}, f"sha256 is {SHA}, expected {'0' * 64}"),
    ({"size": 5}, f"the server has {len(WEIGHTS)} bytes, expected 5"),
])  # fmt: skip
def test_what_the_table_knows_is_checked(known, says, bucket):
    site, _ = bucket
    remote = located(AUGREG, google=site.url)
    remote = dataclasses.replace(remote, files=(dataclasses.replace(remote.files[0], **known),))
    with pytest.raises(ValueError, match=says):
        fetch(remote, network=network(site))
    assert tree(folder_of(remote)) == {}


def redirecting(site, other, *headers):
    """Sends the weights' requests on to the other server."""
    return status(302, ("Location", f"{other.url}/blob"), *headers)


@pytest.mark.parametrize("sha", [SHA, "f" * 64])
def test_the_checksum_stands_on_the_redirect(sha, site):
    with serving({"/blob": WEIGHTS}) as other:
        linked = ("X-Linked-Etag", f'"{sha}"'), ("X-Linked-Size", str(len(WEIGHTS)))
        site.script["model.safetensors"] = [redirecting(site, other, *linked)] * 2
        other.script["blob"] = [serve(keep=1000)]
        if sha == SHA:
            assert tree(get(site)) == BOTH
        else:
            assert f"model.safetensors: sha256 is {SHA}, expected {sha}" in failing(site)
            assert tree(folder_of(located(NAME))) == {"config.json": CONFIG}
        assert [h.get("Range") for h in other.asked("blob")] == [None, "bytes=1000-"], "the storage resumes"


def test_another_size_than_the_redirect_said(site):
    with serving({"/blob": WEIGHTS[:-1]}) as other:
        site.script["model.safetensors"] = [redirecting(site, other, ("X-Linked-Size", str(len(WEIGHTS))))]
        assert f"the server has {len(WEIGHTS) - 1} bytes, expected {len(WEIGHTS)}" in failing(site)


def test_the_token_stays_with_its_origin(site, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    moved = f"/{NAME}/resolve/main/moved"
    with serving({"/blob": WEIGHTS}) as other:
        site.script["model.safetensors"] = [status(307, ("Location", moved))]  # as for a renamed repository
        site.script["moved"] = [redirecting(site, other)]
        assert tree(get(site)) == BOTH
        assert {h.get("Authorization") for _, h in site.log} == {"Bearer secret"}
        assert [h.get("Authorization") for h in other.asked("blob")] == [None]


@pytest.mark.parametrize("token", ["two words", "gehe\u00efm"])
def test_a_malformed_token_is_not_shown(token, site, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    says = failing(site)
    assert "config.json: HF_TOKEN holds more than a token" in says
    assert token not in says


def test_the_token_is_for_hugging_face_alone(bucket, monkeypatch):
    site, _ = bucket
    monkeypatch.setenv("HF_TOKEN", "secret")
    get(site, AUGREG, token_origin=Network().token_origin)
    assert "Authorization" not in site.log[0][1]
    assert Network().token_origin == "https://huggingface.co"


def test_what_is_not_there_is_said_with_the_nearest_name(site, tmp_path):
    says = failing(site, "timm/deit_tiny_patch16_224")
    folder = tmp_path / "cache/weights/huggingface/timm/deit_tiny_patch16_224"
    assert "'timm/deit_tiny_patch16_224': config.json: 404 Not Found; " in says
    assert f"address: {site.url}/timm/deit_tiny_patch16_224/resolve/main/config.json; " in says
    assert f"by hand: {folder} (did you mean 'timm/deit_tiny_patch16_224.fb_in1k'" in says
    assert len(site.log) == 1, "no second try"


@pytest.mark.parametrize(("code", "token", "says"), [
    (401, "", "401 Unauthorized (no such name, or not open to you; HF_TOKEN is not set)"),
    (403, "old", "403 Forbidden (no such name, or not open to you; HF_TOKEN is set)"),
    (418, "", "418 I'm a Teapot"),
])  # fmt: skip
def test_a_refusal_is_not_tried_again(code, token, says, site, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    site.script["config.json"] = [status(code)]
    assert f"config.json: {says}; address" in failing(site)
    assert len(site.log) == 1


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_in_trouble_is_tried_again(code, site):
    site.script["config.json"] = [status(code), status(code)]
    assert tree(get(site)) == BOTH
    assert len(site.asked("config.json")) == 3


def test_a_server_that_falls_silent_is_asked_again(site):
    site.script["model.safetensors"] = [serve(keep=1000, stall=True)]
    assert tree(get(site, timeout=0.1)) == BOTH
    assert site.asked("model.safetensors")[1]["Range"] == "bytes=1000-"


def test_a_server_that_stays_silent_is_given_up(site):
    site.script["model.safetensors"] = [serve(keep=0, stall=True)] * 2
    says = failing(site, timeout=0.1, tries=2)
    assert "model.safetensors: the connection broke (timed out), after 2 tries" in says


def test_no_server(site):
    with serving({}) as gone:
        pass
    says = failing(gone, tries=2)
    assert re.search(r"config.json: no connection \(.*refused\), after 2 tries; address", says)
    says = failing(dataclasses.make_dataclass("Nowhere", ["url"])("http://nowhere.invalid"))
    assert re.search(r"config.json: no connection \(.*\); address: http://nowhere.invalid/timm", says)


@pytest.mark.parametrize(("header", "says"), [
    (("Content-Type", "text/html; charset=utf-8"), "a web page came instead of the file"),
    (("Content-Encoding", "gzip"), "it came as gzip, unasked"),
])  # fmt: skip
def test_something_else_than_the_file_is_refused(header, says, site):
    site.script["config.json"] = [serve(header)]
    assert says in failing(site)
    assert tree(folder_of(located(NAME))) == {}


def test_a_file_of_untold_length(site):
    site.script["model.safetensors"] = [serve(("Content-Length", ""))]
    assert tree(get(site)) == BOTH


HUB = "hf:google/vit"


@pytest.mark.parametrize(("there", "got"), [
    (["config.json", "preprocessor_config.json", "model.safetensors"], None),
    (["config.json", "model.safetensors", "pytorch_model.bin"], ["config.json", "model.safetensors"]),
    (["config.json", "pytorch_model.bin"], None),
])  # fmt: skip
def test_alternatives_and_what_may_lack(there, got):
    with serving({f"/google/vit/resolve/main/{name}": name.encode() for name in there}) as site:
        folder = get(site, HUB)
        assert sorted(tree(folder)) == sorted(got or there)
        asked = len(site.log)
        assert get(site, HUB) == folder
        assert len(site.log) == asked, "what the server lacks is not asked for again"


def test_neither_alternative_is_there():
    with serving({"/google/vit/resolve/main/config.json": CONFIG}) as site:
        says = failing(site, HUB)
    assert "pytorch_model.bin (nor is there model.safetensors): 404 Not Found; address" in says


def test_a_cache_that_cannot_be_made(site, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    says = failing(site)
    assert re.search("cache/weights/.* cannot be used: Not a directory; set JVQ_CACHE to another folder$", says)


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache(site, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    assert "cannot be used: Permission denied; set JVQ_CACHE to another folder" in failing(site)


def test_an_unreadable_cache(site, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    assert "cannot be used: Permission denied; set JVQ_CACHE to another folder" in failing(site)


def test_a_complete_cache_may_be_read_only(site, monkeypatch):
    folder = get(site)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    for method in ("mkdir", "open", "write_text", "unlink"):
        monkeypatch.setattr(Path, method, refuse)
    assert get(site) == folder


def test_a_full_disk(site, monkeypatch):
    opened = os.open

    def full(name, how, mode=0o777):
        return opened("/dev/full", os.O_WRONLY) if str(name).endswith(".part") else opened(name, how, mode)

    monkeypatch.setattr("jvq.models.weights.download.os.open", full)
    says = failing(site)
    assert re.search(r"config.json.part cannot be used: No space left on device; set JVQ_CACHE to another", says)
    assert len(site.log) == 1


CHILD = """
import sys
from jvq.models.weights.download import Network, fetch
from jvq.models.weights.names import located
fetch(located(sys.argv[1], huggingface=sys.argv[2]), network=Network(timeout=5))
"""


@pytest.mark.slow  # two imports of jax
def test_two_processes_at_once_fetch_once(site):
    command = [sys.executable, "-c", CHILD, NAME, site.url]
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    pair = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) for _ in range(2)]
    assert [process.wait(60) for process in pair] == [0, 0]
    assert tree(folder_of(located(NAME))) == BOTH
    assert site.sent == len(CONFIG) + len(WEIGHTS)


def test_whoever_comes_second_waits(site):
    begun, going_on = threading.Event(), threading.Event()

    def slow(handler):
        begun.set()
        going_on.wait(5)
        serve()(handler)

    site.script["config.json"] = [slow]
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(get(site, timeout=5.0))) for _ in range(2)]
    threads[0].start()
    assert begun.wait(5)
    threads[1].start()
    threads[1].join(0.1)
    assert threads[1].is_alive()
    going_on.set()
    for thread in threads:
        thread.join(5)
    assert folders == [folder_of(located(NAME))] * 2
    assert site.sent == len(CONFIG) + len(WEIGHTS)


def test_what_is_fetched_is_told_on_stderr(site, capsys, monkeypatch):
    get(site)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"{name} ..." for name in ("config.json", "model.safetensors")]
    monkeypatch.setenv("JVQ_CACHE", os.environ["JVQ_CACHE"] + "2")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    get(site)
    out, err = capsys.readouterr()
    assert out == ""
    assert "model.safetensors" in err


@pytest.mark.parametrize(("variables", "want"), [
    ({"JVQ_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/weights/x"),
    ({"JVQ_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/jvq/weights/x"),
    ({"JVQ_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/jvq/weights/x"),
])  # fmt: skip
def test_where_the_cache_is(variables, want, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert folder_of(Remote("x", "x", ())) == Path(want)
