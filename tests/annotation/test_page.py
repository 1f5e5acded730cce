"""The page in a real browser: what was pressed, clicked and dragged is what the decisions say."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
from annotation_place import records, write

from pangu_trl.annotation.store import read_decisions
from pangu_trl.cli import main

pytest.importorskip("starlette", reason="the page is an extra: pip install 'pangu_trl[annotate]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: install the distribution's package to run these"),
]


class Running:
    """The command in a process, which can be killed and started again at the same port."""

    def __init__(self, place, *words):
        self.place, self.words, self.port = place, words, 0
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import sys; from pangu_trl.cli import main; sys.exit(main())", "annotate"]
            + [str(self.place.path), "--annotator", "ann", "--port", str(self.port), *self.words],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.link = self.process.stdout.readline().strip()
        self.port = urlsplit(self.link).port

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def serve(place):
    servers = []

    def start(rows, *words):
        write(place.path, rows)
        servers.append(Running(place, *words))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def visit(chromium):
    """Opens a link in a browser of its own; what it asked for, and complained of, is in `asked` and `complaints`."""
    contexts = []

    def open_link(link, **options):
        context = chromium.new_context(**({"viewport": {"width": 1300, "height": 900}, "locale": "en-US"} | options))
        contexts.append(context)
        page = context.new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: page.complaints.append(message.text) if "Content Security" in message.text else None,
        )
        page.on("dialog", lambda dialog: page.complaints.append(dialog.message))
        page.goto(link)
        page.wait_for_selector(".card")
        return page

    yield open_link
    for context in contexts:
        context.close()


def _shown(page):
    """Line of the prompt on the page, and the numbers in the file of its answers in the order shown."""
    texts = page.locator(".card .card-text").all_text_contents()
    found = [re.fullmatch(r"p(\d+)-a(\d+)", text) for text in texts]
    return int(found[0][1]) + 1, [int(match[2]) for match in found]


def _plan(draw, num_answers):
    """A ranking as a list of places from best to worst, and the invalid answers."""
    answers = list(range(num_answers))
    draw.shuffle(answers)
    invalid = [answers.pop() for _ in range(draw.choice([0, 0, 0, 1, 2, num_answers]))]
    places = []
    for answer in answers:
        if places and draw.random() < 0.3:
            places[-1].append(answer)
        else:
            places.append([answer])
    return places, invalid


def _ranks(places, invalid, num_answers):
    ranks = [None] * num_answers
    for place, group in enumerate(places, start=1):
        for answer in group:
            ranks[answer] = place
    return tuple(ranks)


def _next(page, act):
    """Acts, and waits for another prompt, or for the end."""
    before = page.locator("#prompt-text").text_content()
    act()
    page.wait_for_function(
        "before => !document.body.classList.contains('is-busy') && "
        "(document.getElementById('prompt-text').textContent !== before || !document.getElementById('done').hidden)",
        arg=before,
    )


def _by_keys(page, order, places, invalid, draw):
    for answer in invalid:
        page.keyboard.press("0")
        page.keyboard.press(str(order.index(answer) + 1))
    for group in places:
        for index, answer in enumerate(group):
            if index:
                page.keyboard.press("=")
            if draw.random() < 0.15:
                # To the answer by j, and there the space bar.
                page.evaluate("document.activeElement.blur()")
                for _ in range(order.index(answer) + 1):
                    page.keyboard.press("j")
                page.keyboard.press("Space")
            else:
                page.keyboard.press(str(order.index(answer) + 1))


def _drag(page, source, target):
    start, end = source.bounding_box(), target.bounding_box()
    page.mouse.move(start["x"] + 20, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(start["x"] + 40, start["y"] + 20, steps=3)
    # It makes room for what is dragged.
    end = target.bounding_box()
    page.mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] / 2, steps=5)
    page.mouse.up()


def _by_mouse(page, order, places, invalid, draw):
    """Places answers one after the other from the best, each by its button or dragged to where it belongs."""
    cards = page.locator(".card")
    for answer in invalid:
        card = cards.nth(order.index(answer))
        if draw.random() < 0.5:
            card.locator(".invalid-button").click()
        else:
            _drag(page, card.locator(".card-title"), page.locator("#invalid"))
    for number, group in enumerate(places):
        for index, answer in enumerate(group):
            card = cards.nth(order.index(answer))
            if draw.random() < 0.5:
                if index:
                    page.locator("#tie").click()
                card.locator(".place").click()
            elif index:
                _drag(page, card.locator(".card-title"), page.locator(f'[data-drop="place:{number}"]'))
            else:
                _drag(page, card.locator(".card-title"), page.locator(f'[data-drop="gap:{number}"]'))


def test_sixty_prompts_by_keys_and_by_mouse_are_kept_as_they_were_ranked(serve, visit, place):
    num_answers = 5
    server = serve(records(60, num_answers), "--seed", "7")
    page = visit(server.link)
    draw = random.Random(11)
    expected, orders = {}, {}
    for turn in range(60):
        line, order = _shown(page)
        places, invalid = _plan(draw, num_answers)
        if turn in (9, 31):
            _next(page, lambda: page.keyboard.press("s"))
            expected[line], orders[line] = ((), ""), tuple(order)
            continue
        if turn in (14, 52):
            # A wrong start that is taken back, key by key.
            for key in ("2", "=", "3", "0", "1", *["Backspace"] * 3):
                page.keyboard.press(key)
        if turn in (20, 41):
            # What was begun is there after a reload, and the rest follows.
            page.keyboard.press("0")
            page.keyboard.press("1")
            page.reload()
            page.wait_for_selector(".card.is-invalid")
            assert _shown(page) == (line, order)
            page.keyboard.press("Backspace")
        comment = f"comment {turn} 好 <b>" if turn % 10 == 3 else ""
        if comment:
            page.keyboard.press("c")
            page.keyboard.insert_text(comment)
            page.keyboard.press("Escape")
        by = _by_mouse if turn >= 50 else _by_keys
        by(page, order, places, invalid, draw)
        if turn == 25:
            # Killed with all placed; the page sends until the new server answers.
            server.kill()
            page.keyboard.press("Enter")
            page.wait_for_selector("#banner:not([hidden])")
            assert "not reached" in page.locator("#banner").text_content()
            _next(page, server.start)
            assert page.locator("#banner").is_hidden()
        elif turn == 36:
            # Killed with half of it placed, started again, and the page loaded anew.
            server.kill()
            server.start()
            page.reload()
            page.wait_for_selector(".card")
            assert _shown(page) == (line, order)
            _next(page, lambda: page.keyboard.press("Enter"))
        else:
            _next(page, lambda turn=turn: page.locator("#next").click() if turn >= 50 else page.keyboard.press("Enter"))
        expected[line], orders[line] = (_ranks(places, invalid, num_answers), comment), tuple(order)
        if turn == 45:
            # Back to the prompt before, where everything is as it was left; another ranking takes its place.
            _next(page, lambda: page.keyboard.press("Backspace"))
            assert _shown(page) == (line, order)
            assert page.locator("#comment").input_value() == comment
            assert page.locator(".chip").count() == num_answers
            for _ in range(num_answers):
                page.keyboard.press("Backspace")
            for key in range(1, num_answers + 1):
                page.keyboard.press(str(key))
            _next(page, lambda: page.keyboard.press("Enter"))
            expected[line] = (tuple(order.index(answer) + 1 for answer in range(num_answers)), comment)
    page.wait_for_selector("#done:not([hidden])")
    assert "58 prompts ranked, 2 skipped" in page.locator("#done-text").text_content()
    decisions = read_decisions(place.store)
    assert len(decisions) == 60
    assert {decision.line: (decision.ranks, decision.comment) for decision in decisions} == expected
    assert {decision.line: decision.order for decision in decisions} == orders
    assert all(0 < decision.seconds < 600 for decision in decisions)
    assert page.complaints == []
    assert {urlsplit(url).netloc for url in page.asked} == {f"127.0.0.1:{server.port}"}
    # And what the reward stage gets of it, by the command; the server still runs.
    output = place.path.with_name("rankings.jsonl")
    assert main(["export-annotations", str(place.path), "--output", str(output)]) == 0
    exported = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    ranked = {line: said for line, said in sorted(expected.items()) if said[0]}
    assert len(ranked) == 58
    assert [record["prompt"] for record in exported] == [f"question {line - 1}" for line in ranked]
    for record, (line, (ranks, comment)) in zip(exported, ranked.items(), strict=True):
        assert record["responses"] == [f"p{line - 1}-a{answer}" for answer in range(num_answers)]
        assert record["scores"] == _scores(ranks)
        assert record["invalid_votes"] == [int(rank is None) for rank in ranks]
        assert (record["annotators"], record["comments"]) == (["ann"], [comment])


def _scores(ranks):
    """How many answers each one beats, a tie by half; an invalid one beats nothing and ties with its like."""
    worst = len(ranks) + 1
    ranks = [worst if rank is None else rank for rank in ranks]
    return [sum((rank < other) + 0.5 * (rank == other) for other in ranks) - 0.5 for rank in ranks]


def test_a_finger_drags_and_taps(serve, visit, place):
    server = serve(records(2, 3))
    page = visit(server.link, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    _, order = _shown(page)
    page.locator(".place").nth(1).tap()
    page.locator(".place").nth(0).tap()
    # The third before both, by a finger.
    touch = page.context.new_cdp_session(page)
    page.locator(".card").nth(2).scroll_into_view_if_needed()

    def send(kind, box):
        points = [{"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}] if box else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    start = page.locator(".card .card-title").nth(2).bounding_box()
    send("touchStart", start)
    send("touchMove", start | {"y": start["y"] + 30})
    send("touchMove", page.locator('[data-drop="gap:0"]').bounding_box())
    send("touchMove", page.locator('[data-drop="gap:0"]').bounding_box())
    send("touchEnd", None)
    _next(page, lambda: page.locator("#next").tap())
    assert read_decisions(place.store)[0].ranks == _ranks([[order[2]], [order[1]], [order[0]]], [], 3)


def test_hostile_answers_do_nothing(serve, visit):
    attacks = [
        "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
        "[click](javascript:window.hacked=1) ![x](http://127.0.0.1:1/x.png) <a href='http://evil.example'>x</a>",
        "</div></main><style>body { display: none }</style><iframe srcdoc='<script>top.hacked=1</script>'>",
        "\u202eback\u202c \x1b[31m\x1b]0;title\x07 \u200b\u2066 \x00 \ufeff",
        "```html\n<script>window.hacked = 1</script>\n```\n\n"
        "| <b onclick=alert(1)> | `<i>` |\n|---|---|\n| **<u>** | _x_ |",
        "*" * 100_000,
        "[" * 19_000,
        "y" * 1_000_000,
    ]
    page = visit(serve([{"prompt": "<script>window.hacked = 1</script>", "responses": attacks}]).link)
    page.wait_for_timeout(500)
    assert page.evaluate("window.hacked") is None
    assert page.complaints == []
    assert page.locator("#work script, #work img, #work iframe, #work style, #work a, #work b").count() == 0
    assert {urlsplit(url).hostname for url in page.asked} == {"127.0.0.1"}
    assert all(urlsplit(url).port != 1 for url in page.asked)
    seen = page.locator(".card", has_text="back").locator(".unseen-character").all_text_contents()
    assert seen == ["U+202E", "U+202C", "U+001B", "U+001B", "U+0007", "U+200B", "U+2066", "U+0000", "U+FEFF"]
    # The long one comes when it is asked for.
    card = page.locator(".card", has=page.locator(".more")).last
    long = page.locator(".card", has_text="yyyy")
    assert "of 1,000,000" in long.locator(".more").text_content() and card.count() == 1
    long.locator(".unfold").click()
    long.locator(".more").click()
    page.wait_for_function("() => [...document.querySelectorAll('.plain')].some(e => e.textContent.length === 120000)")


def test_texts_become_the_elements_that_their_markdown_names(serve, visit):
    page = visit(serve(records(1)).link)
    html = """text => import('./markdown.js').then(({markdown}) => markdown(text).innerHTML)"""
    for text, expected in {
        "a **b** `c` *d* ~~e~~ _f_ snake_case_name 2*3*4": "<p>a <strong>b</strong> <code>c</code> <em>d</em> <s>e</s> "
        "<em>f</em> snake_case_name 2<em>3</em>4</p>",
        "# Head\ntext\nmore\n\nnext": "<h3>Head</h3><p>text\nmore</p><p>next</p>",
        "- a\n- b\n  - c\n\n1. x\n2. y": "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul></li></ul>"
        '<ol start="1"><li><p>x</p></li><li><p>y</p></li></ol>',
        "> q\n> r": "<blockquote><p>q\nr</p></blockquote>",
        "```py\na < b\n  c\n```": '<pre data-language="py" tabindex="0"><code>a &lt; b\n  c</code></pre>',
        "|a|b|\n|-|-|\n|1|2|": '<div class="table"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
        "<tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>",
        r"\*no\* **open `x": "<p>*no* **open `x</p>",
        "---": "<hr>",
        "```\nopen": '<pre tabindex="0"><code>open</code></pre>',
    }.items():
        assert page.evaluate(html, text) == expected
    script = """([a, b]) => import('./differences.js').then(({differences}) =>
        differences(a, b).map(({kind, text}) => kind + ':' + text))"""
    assert page.evaluate(script, ["the cat sat", "the dog sat"]) == ["same:the ", "gone:cat", "new:dog", "same: sat"]
    assert page.evaluate(script, ["我喜欢猫", "我不喜欢狗"]) == ["same:我", "new:不", "same:喜欢", "gone:猫", "new:狗"]
    assert page.evaluate(script, ["", "a b"]) == ["new:a b"]


def test_keys_mean_the_same_on_other_keyboards_and_nothing_in_a_comment(serve, visit, place):
    page = visit(serve(records(2)).link)
    press = """([key, code]) => document.activeElement.dispatchEvent(
        new KeyboardEvent('keydown', {key, code, bubbles: true, cancelable: true}))"""
    # French keys without Shift, and wide ones of an input method.
    page.evaluate(press, ["&", "Digit1"])
    page.evaluate(press, ["＝", "Equal"])
    page.evaluate(press, ["２", "Digit2"])
    assert page.locator(".rank").count() == 1 and page.locator(".rank .chip").count() == 2
    page.locator("#comment").focus()
    page.keyboard.type("s 3 = 0")
    assert page.locator("#comment").input_value() == "s 3 = 0" and page.locator(".chip").count() == 2
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#keys-dialog").is_visible()
    page.keyboard.press("3")
    page.locator("#single-keys").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("3")
    page.keyboard.press("s")
    assert page.locator(".chip").count() == 2
    assert read_decisions(place.store) == []


def test_a_pause_does_not_count(serve, visit, place):
    page = visit(serve(records(1, 2)).link)
    page.keyboard.press("p")
    assert page.locator("#paused").is_visible()
    page.wait_for_timeout(3000)
    page.keyboard.press("Enter")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#done:not([hidden])")
    (decision,) = read_decisions(place.store)
    # The page was there for more than three seconds.
    assert decision.seconds < 3


def test_a_screen_reader_hears_what_eyes_see(serve, visit):
    server = serve(records(1, 3))
    for locale, best, announced in (
        ("en-US", "Answer 2: Best", "Answer 2: 1st."),
        ("zh-CN", "回答 2: 最好", "回答 2：第 1。"),
    ):
        page = visit(server.link, locale=locale)
        assert page.evaluate("document.documentElement.lang") == ("zh-CN" if locale == "zh-CN" else "en")
        page.get_by_role("button", name=best, exact=True).click()
        assert page.locator("#announcer").text_content() == announced
        assert page.get_by_role("progressbar").get_attribute("aria-valuemax") == "1"
        names = page.evaluate(
            "[...document.querySelectorAll('button')].filter(b => b.offsetParent)"
            ".filter(b => !(b.getAttribute('aria-label') || b.textContent).trim()).map(b => b.outerHTML)"
        )
        assert names == []
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.dataset.answer") == "0"
        page.keyboard.press("k")
        assert page.evaluate("document.activeElement.dataset.answer") == "0"


def test_a_window_without_a_session_says_what_to_do(serve, visit):
    server = serve(records(2))
    page = visit(server.link)
    page.context.clear_cookies()
    page.keyboard.press("s")
    page.wait_for_selector("#banner:not([hidden])")
    assert "Open the link that the server printed" in page.locator("#banner").text_content()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(server.link.partition("?")[0])
    # What was begun goes on behind the new link.
    page.keyboard.press("2")
    page.goto(server.link)
    page.wait_for_selector(".card.is-placed")
    assert json.loads(page.evaluate("JSON.stringify(sessionStorage)"))


def test_scores_of_attributes_are_kept_by_answer(serve, visit, place, tmp_path):
    (tmp_path / "attributes.yaml").write_text("helpful: {en: Helpful, from: 0, to: 2}\n", "utf-8")
    page = visit(serve(records(1, 2), "--attributes", str(tmp_path / "attributes.yaml")).link)
    _, order = _shown(page)
    page.locator(".card").nth(1).locator("label", has_text="2").click()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#done:not([hidden])")
    (decision,) = read_decisions(place.store)
    scores = [None, None]
    scores[order[1]] = 2.0
    assert decision.attributes == {"helpful": tuple(scores)}
