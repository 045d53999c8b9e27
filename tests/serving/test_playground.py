"""The playground in a real browser: what a person with mouse or keyboard sees of each kind of answer, and of errors."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By

from serving.keys import hash_of
from tests.serving.browser import Page, open_browser
from tests.serving.conftest import Server, options
from tests.serving.versions_tree import make_versions

pytestmark = pytest.mark.slow

LONG = "大国新闻，股市增长。他说你好！王明在北京。" * 5


@pytest.fixture(scope="module")
def page(onnx_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    browser = open_browser(tmp_path_factory.mktemp("profile"))
    yield Page(browser, onnx_server.url)
    browser.quit()


def said(http: httpx.Client, model: str, text: str) -> dict:
    body = {"inputs": text, "offset_unit": "utf16", "return_windows": True}
    return http.post(f"/v1/models/{model}/predict", json=body).json()["predictions"][0]


def shown(score: float) -> str:
    return f"{100 * score:.{0 if score > 0.9995 or score < 0.0005 else 1}f}%"


def test_a_text_gets_a_bar_for_every_label_with_the_models_scores(page: Page, http: httpx.Client) -> None:
    page.open().choose("news")
    page.fill("text", "我们在北京")
    page.ask()

    wanted = [(item["label"], item["score"]) for item in said(http, "news", "我们在北京")["scores"]]
    bars = page.all(".bars li")
    assert [bar.find_element(By.CSS_SELECTOR, ".label").text for bar in bars] == [label for label, _ in wanted]
    for bar, (_, score) in zip(bars, wanted, strict=True):
        track = bar.find_element(By.CSS_SELECTOR, ".track")
        fill = bar.find_element(By.CSS_SELECTOR, ".fill")
        assert float(track.get_attribute("aria-valuenow") or "-1") == score
        assert bar.find_element(By.CSS_SELECTOR, ".number").text == shown(score)
        assert fill.size["width"] == pytest.approx(score * track.size["width"], abs=3)
    assert wanted[0][0] in page.text(".verdict") and wanted[0][0] in page.text("#said")
    assert re.search(r"infer [\d.]+ ms", page.text(".legend"))
    assert page.complaints() == []


def test_a_multi_label_answer_shows_what_is_given_and_every_threshold(page: Page, http: httpx.Client) -> None:
    page.open().choose("topics")
    page.fill("text", LONG)
    page.ask()

    answer = said(http, "topics", LONG)
    given = {item["label"] for item in answer["labels"]}
    assert 0 < len(given) < 4
    assert {chip.text.split()[0] for chip in page.all(".verdict .chip")} == given
    assert {row.find_element(By.CSS_SELECTOR, ".label").text for row in page.all(".bars .given")} == given
    assert len(page.all(".tick")) == 4


def test_entities_stand_in_the_text_at_their_place_also_after_an_emoji(page: Page, http: httpx.Client) -> None:
    text = "😀王明昨天从北京到上海，👨‍👩‍👧在大学。"
    page.open().choose("ner")
    page.fill("text", text)
    page.ask()

    wanted = said(http, "ner", text)["entities"]
    assert wanted
    marks = page.all(".marked mark")
    # The first text node is what is marked; the type follows in an element of its own.
    words = [page.browser.execute_script("return arguments[0].firstChild.data", mark) for mark in marks]
    assert words == [item["text"] for item in wanted]
    assert [mark.get_attribute("data-label") for mark in marks] == [item["label"] for item in wanted]
    whole = page.browser.execute_script(
        "const copy = document.querySelector('.marked').cloneNode(true);"
        "copy.querySelectorAll('.kind').forEach((kind) => kind.remove()); return copy.textContent"
    )
    assert whole == text
    assert page.text("#count").startswith(f"{len(text)} ")


def test_a_multi_task_answer_has_a_label_and_entities(page: Page, http: httpx.Client) -> None:
    page.open().choose("desk")
    page.fill("text", LONG)
    page.ask()

    answer = said(http, "desk", LONG)
    assert answer["label"] in page.text(".verdict")
    assert len(page.all(".marked mark")) == len(answer["entities"]) > 0


def test_a_model_of_pairs_has_a_second_field(page: Page, http: httpx.Client) -> None:
    page.open().choose("news")
    assert not page.find("#pair").is_displayed()
    page.choose("pairs")
    page.fill("text", "怎么修改地址")
    page.find("#pair").send_keys("如何更改地址")
    page.ask()

    body = {"inputs": [{"text": "怎么修改地址", "pair": "如何更改地址"}]}
    label = http.post("/v1/models/pairs/predict", json=body).json()["predictions"][0]["label"]
    assert label in page.text(".verdict")


def test_the_windows_of_a_long_text_are_drawn_over_it_and_chosen_with_the_arrow_keys(
    page: Page, http: httpx.Client
) -> None:
    page.open().choose("news")
    page.fill("text", LONG)
    page.ask()

    windows = said(http, "news", LONG)["window_list"]
    assert len(windows) > 3
    bars = page.all(".map .bar")
    assert len(bars) == len(windows)
    assert page.text(".windowed") == LONG
    bars[0].click()
    bars[0].send_keys(Keys.ARROW_RIGHT)

    second = windows[1]
    assert page.browser.switch_to.active_element == bars[1]
    assert bars[1].get_attribute("aria-pressed") == "true" and bars[0].get_attribute("aria-pressed") == "false"
    told = page.text(".told")
    for part in (second["scores"][0]["label"], shown(second["scores"][0]["score"]), f"{second['weight']:.3f}"):
        assert part in told
    marked = "".join(str(piece.get_property("textContent")) for piece in page.all(".piece.on"))
    assert marked == LONG[second["start"] : second["end"]]
    rows = page.all(".windows tbody tr")
    assert len(rows) == len(windows) and "on" in (rows[1].get_attribute("class") or "")


def test_markup_in_a_text_is_shown_as_text_and_does_nothing(page: Page) -> None:
    evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>王明在北京' + "大" * 60
    for model in ("news", "ner"):
        page.open().choose(model)
        page.fill("text", evil)
        page.ask()
        assert "<img src=x" in page.text("#answer")
        assert page.all("#answer img, #answer script") == []
        assert page.browser.title == "Slipway"
    assert page.complaints() == []


def test_an_error_is_readable_and_the_button_beside_it_mends_it(page: Page) -> None:
    page.open().choose("news")
    page.fill("text", "大" * 1000)
    page.ask()

    problem = page.text(".problem")
    assert "Text too long" in problem and "1000 tokens" in problem
    facts = dict(
        zip(
            [str(item.get_property("textContent")) for item in page.all(".problem dt")],
            [str(item.get_property("textContent")) for item in page.all(".problem dd")],
            strict=True,
        )
    )
    assert facts["Field"] == "inputs" and facts["Limit"] == "8" and int(facts["Yours"]) > 8
    assert page.find("#text").get_attribute("aria-invalid") == "true"

    page.find(".problem button").click()
    page.until(lambda: page.all(".result"))
    assert page.find("#truncate").is_selected()
    assert "only the first" in page.text(".read")
    assert page.find("#text").get_attribute("aria-invalid") == "false"


def test_an_empty_text_is_refused_in_the_readers_language(page: Page) -> None:
    page.open(language="zh-CN").choose("news")
    page.ask()
    assert "文本无效" in page.text(".problem")


def test_two_models_are_compared_side_by_side(page: Page, http: httpx.Client) -> None:
    page.open(width=1400).choose("news", "news-int8")
    page.fill("text", LONG)
    page.ask()

    cards = page.all(".sides .result")
    assert [card.find_element(By.CSS_SELECTOR, "h2").text for card in cards] == ["news", "news-int8"]
    assert cards[0].rect["y"] == cards[1].rect["y"] and cards[0].rect["x"] < cards[1].rect["x"]
    one, other = (said(http, model, LONG) for model in ("news", "news-int8"))
    difference = page.text(".difference")
    assert one["label"] == other["label"] and f"Both say {one['label']}." in difference
    scores = {item["label"]: item["score"] for item in other["scores"]}
    largest = max(abs(item["score"] - scores[item["label"]]) for item in one["scores"])
    assert f"{largest:.4f}" in difference


def test_two_versions_of_a_model_are_compared_side_by_side(
    page: Page, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("versions")
    bundles = make_versions(root, broken=False)
    key = "the key of the administrator"
    server = Server(
        root / "log",
        *options(bundles, "onnx"),
        SLIPWAY_VERSIONS_FILE=str(bundles / "versions.json"),
        SLIPWAY_ADMIN_KEY_SHA256=hash_of(key),
    ).until_ready()
    try:
        with httpx.Client(base_url=server.url, timeout=60, headers={"Authorization": f"Bearer {key}"}) as http:
            assert http.post("/v1/admin/models/news/versions/2:load").status_code == 200
            unknown = http.post("/v1/models/news/predict", json={"inputs": "好", "version": 9})
            assert unknown.status_code == 404 and "version 9" in unknown.json()["detail"]

            def labels(text: str) -> list[str]:
                bodies = [{"inputs": text, "version": version} for version in (1, 2)]
                answers = [http.post("/v1/models/news/predict", json=body).json() for body in bodies]
                assert [answer["version"] for answer in answers] == [1, 2]
                return [answer["predictions"][0]["label"] for answer in answers]

            texts = [f"{first}{second}大国新闻" for first in "股市涨跌增长人民" for second in "好坏明北"]
            text = next(text for text in texts if len(set(labels(text))) == 2)
            one, other = labels(text)
        Page(page.browser, server.url).open(width=1400).choose("news@1", "news@2")
        page.fill("text", text)
        page.ask()
        for card, version, label in zip(page.all(".sides .result"), (1, 2), (one, other), strict=True):
            assert f"version {version}" in card.text
            assert label in card.find_element(By.CSS_SELECTOR, ".verdict").text
        assert f"{one} and {other}" in page.text(".difference")
    finally:
        assert server.stop() == 0, server.output


def test_everything_can_be_done_with_the_keyboard_alone(page: Page) -> None:
    page.open()
    names = []

    def tab() -> str:
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        name = page.browser.switch_to.active_element.get_attribute("id") or page.browser.switch_to.active_element.text
        names.append(name)
        return str(name)

    page.find("body").send_keys(Keys.TAB)
    page.browser.switch_to.active_element.send_keys(Keys.ENTER)  # the link that skips to the text
    active = page.browser.switch_to.active_element
    assert active.get_attribute("id") == "text"
    active.send_keys("abc 123", Keys.CONTROL, Keys.ENTER)
    page.settled()
    assert page.all(".result")
    while tab() != "clear":
        assert len(names) < 12, names
    assert {"Short example", "Long example", "Options", "clear"} <= set(names)
    outline = page.browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def lightness(page: Page, css: str, what: str) -> float:
    """Mean of red, green and blue of a computed colour, 0 to 255."""
    colour = page.browser.execute_script(f"return getComputedStyle(document.querySelector(arguments[0])).{what}", css)
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def test_the_page_is_dark_where_the_reader_prefers_it_and_can_be_switched(page: Page) -> None:
    page.open(dark=True)
    assert lightness(page, "body", "backgroundColor") < 60 < 180 < lightness(page, "body", "color")
    page.find("#theme").click()
    assert lightness(page, "body", "backgroundColor") > 200
    page.browser.refresh()
    page.until(lambda: page.find("html").get_attribute("data-ready") == "yes")
    assert lightness(page, "body", "backgroundColor") > 200, "the choice is kept"
    page.open()
    assert lightness(page, "body", "backgroundColor") > 200 > 60 > lightness(page, "body", "color")


def test_the_page_speaks_the_readers_language_and_can_be_switched_without_asking_again(page: Page) -> None:
    page.open(language="zh-CN").choose("news")
    assert "提问" in page.text("#ask button[type=submit]")
    page.fill("text", LONG)
    page.ask()
    request = page.text("pre:not(.curl)")
    assert "文本是怎样被读的" in page.text("#answer")
    page.find("#language").click()
    assert "How the text was read" in page.text("#answer")
    assert page.text("pre:not(.curl)") == request
    assert page.find("html").get_attribute("lang") == "en"
    left = re.findall(r"[\u4e00-\u9fff]+", page.text("form"))
    assert set(left) <= {"中文"}, "every word of the form is translated"


def test_nothing_is_wider_than_a_telephone(page: Page) -> None:
    page.open(width=400, height=800).choose("news", "news-int8")
    page.fill("text", LONG + "a" * 300)
    page.ask()
    width, visible = page.browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= visible


def test_the_curl_line_does_the_same(page: Page, http: httpx.Client) -> None:
    text = "他说'你好' $HOME `id` \\n \"大国\"\n王明"
    page.open().choose("news")
    page.fill("text", text)
    page.ask()
    line = page.text(".curl")
    assert shlex.split(line.replace("\\\n", " "))[0] == "curl"
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout
    label, score = (said(http, "news", text)[name] for name in ("label", "score"))
    assert f'"label":"{label}","score":{score}' in answer
    assert label in page.text(".verdict")


def test_a_text_file_is_dropped_and_a_file_that_is_no_text_is_refused(page: Page) -> None:
    drop = """
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(arguments[0])], "a.txt"));
      document.getElementById("ask").dispatchEvent(
        new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    """
    page.open().choose("news")
    page.browser.execute_script(drop, list("大国新闻".encode()))
    page.until(lambda: page.find("#text").get_property("value") == "大国新闻")
    page.browser.execute_script(drop, [0xFF, 0xFE, 0x00])
    page.until(lambda: "not UTF-8" in page.text("#drop-hint"))
    assert page.find("#text").get_property("value") == "大国新闻"


def test_an_answer_under_way_is_told_and_a_server_that_went_away_too(page: Page) -> None:
    page.open().choose("news")
    # The request is held in the browser itself, so that the page can be looked at meanwhile.
    page.browser.execute_script(
        "const real = window.fetch; window.release = null;"
        "window.fetch = (...asked) => new Promise((go) => { window.release = go; }).then(() => real(...asked))"
    )
    page.fill("text", "好")
    page.find("#ask button[type=submit]").click()
    page.until(lambda: page.all(".bones"))
    assert page.find("#answer").get_attribute("aria-busy") == "true"
    assert page.find("#stop").is_displayed() and "Asking" in page.text("#said")
    page.browser.execute_script("window.release()")
    page.settled()
    assert page.all(".result") and not page.find("#stop").is_displayed()

    page.browser.execute_script("window.fetch = () => Promise.reject(new TypeError('refused'))")
    page.find("#ask button[type=submit]").click()
    page.until(lambda: page.all(".problem"))
    assert "cannot be reached" in page.text(".problem")


def test_every_control_and_picture_has_a_name(page: Page) -> None:
    page.open().choose("topics")
    page.fill("text", LONG)
    page.ask()
    tree = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    nameless = [
        node["role"]["value"]
        for node in tree
        if not node.get("ignored")
        and node["role"]["value"]
        in {"button", "combobox", "textbox", "checkbox", "spinbutton", "meter", "link", "image", "toolbar"}
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    assert sum(node.get("role", {}).get("value") == "meter" for node in tree) == 4


def test_the_documentation_page_works_under_its_policy(page: Page) -> None:
    page.browser.get(f"{page.url}/docs")
    page.until(lambda: page.all(".opblock"))
    assert page.complaints() == []


def test_the_pages_forbid_scripts_frames_and_everything_from_elsewhere(http: httpx.Client) -> None:
    for path in ("/", "/docs", "/playground/app.js"):
        answer = http.get(path)
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'" and "unsafe" not in str(policy)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", answer.text)
    assert http.get("/", headers={"If-None-Match": http.get("/").headers["etag"]}).status_code == 304


def test_no_script_of_the_playground_writes_markup(page: Page) -> None:
    web = Path(__file__).parents[2] / "serving" / "web"
    scripts = {path.name: path.read_text(encoding="utf-8") for path in web.glob("*.js")}
    assert "app.js" in scripts
    for name, script in scripts.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script), name
