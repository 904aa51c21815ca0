"""The page in a real browser, over Serve: what a person does, and what they see."""

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import uvicorn
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, ViewportSize, expect, sync_playwright

from ray_recsys.config.files import load_recipe
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.distributed.serve.local import serve
from ray_recsys.serving.app import make_app
from tests.app_client import local_api
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.ray,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium"),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FIRST_ID = 2**60 + 1  # every id is above 2^53: a JavaScript number would round it
LAPTOP, PHONE = ViewportSize(width=1280, height=800), ViewportSize(width=390, height=844)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("page")
    publish_bundle(home / "registry", make_prepared_set(home / "prepared"))
    return home / "registry"


@pytest.fixture(scope="module")
def address(registry: Path, ray_session: None) -> Iterator[str]:  # noqa: ARG001  (a fixture cannot use usefixtures)
    with serve(registry, load_recipe(overrides=["serve.port=0"]).serve) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def rated_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app under another ASGI server, over a bundle with ratings and 64-bit ids."""
    home = tmp_path_factory.mktemp("rated")
    publish_bundle(home / "registry", make_prepared_set(home / "prepared", first_id=FIRST_ID, has_ratings=True))
    app = make_app(local_api(home / "registry"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline_s = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page with its first answer shown; fails if the browser logged an error."""
    yield from open_page(browser, address)


@pytest.fixture
def rated_page(browser: Browser, rated_address: str) -> Iterator[Page]:
    """As `page`, in a browser that can only read integers up to 2^53."""
    yield from open_page(browser, rated_address, script="delete JSON.rawJSON")


def open_page(browser: Browser, address: str, script: str = "") -> Iterator[Page]:
    wrong: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # the browser itself logs every 4xx and 5xx; the page shows them to the person
        if message.type in ("error", "warning") and "the server responded with a status of" not in message.text:
            wrong.append(message.text)

    page = browser.new_page(viewport=LAPTOP)
    page.set_default_timeout(10_000)
    page.add_init_script(script)
    page.on("console", note)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    expect(recommended(page)).to_have_count(10)
    yield page
    page.close()
    assert wrong == []


def recommended(page: Page, within: str = "#recommendations") -> Locator:
    return page.locator(f"{within} button[data-item-id]")


def choose_user(page: Page, user_id: str) -> None:
    page.get_by_label("User id").fill(user_id)
    page.get_by_role("button", name="Show", exact=True).click()


def test_a_known_user(page: Page, registry: Path) -> None:
    page.get_by_role("button", name="user-00003").click()
    expect(page.locator("#results-sub")).to_contain_text(
        "User user-00003 · Recalled from the catalogue, reranked by NeuMF"
    )
    expect(page.locator("#bundle-model")).to_have_text("NeuMF")
    ndcg = Registry(registry).open().manifest.metrics["validation"]["NDCG@10"]
    expect(page.locator("#bundle-quality")).to_have_text(f"validation NDCG@10 {ndcg:.4f}")
    expect(page.locator("#source")).to_have_text("Two-stage")
    expect(recommended(page)).to_have_count(10)
    expect(recommended(page).first).to_contain_text(re.compile(r"Title \d+"))
    scores = [float(text.split()[-1]) for text in page.locator("#recommendations .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)

    def ids(within: str) -> list[str | None]:
        return [button.get_attribute("data-item-id") for button in recommended(page, within).all()]

    assert len(ids("#seen")) >= 5
    assert not set(ids("#seen")) & set(ids("#recommendations"))
    expect(page.locator("#bundle-version")).to_have_text(Registry(registry).open().version)
    expect(page.locator("#timing-legend")).to_contain_text(re.compile(r"recall\s*[\d.]+ ms\s*rerank\s*[\d.]+ ms"))
    assert page.get_by_role("link", name="API docs").get_attribute("href") == "docs"


def test_like_and_hide_make_the_list_again_at_once(page: Page) -> None:
    page.get_by_role("button", name="user-00003").click()
    expect(page.locator("#results-sub")).to_contain_text("User user-00003")
    first, second = (recommended(page).nth(row).get_attribute("data-item-id") for row in (0, 1))
    page.locator("#recommendations .actions button").nth(1).click()
    expect(page.locator(f'#recommendations [data-item-id="{first}"]')).to_have_count(0)
    expect(page.locator("#feedback-text")).to_have_text("0 liked, 1 hidden")
    expect(page.locator("#source")).to_have_text("Two-stage")
    page.get_by_role("button", name=re.compile("^Like: ")).first.click()
    expect(page.locator("#source")).to_have_text("Fold-in")
    expect(page.locator(f'#recommendations [data-item-id="{second}"]')).to_have_count(0)
    expect(recommended(page)).to_have_count(10)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#source")).to_have_text("Two-stage")
    expect(recommended(page).first).to_have_attribute("data-item-id", str(first))


def test_popular_items_are_beside_the_recommendations(page: Page, registry: Path) -> None:
    bundle = Registry(registry).open()
    best = [item.item_id for item in bundle.catalogue.describe(range(10))]
    expect(recommended(page, "#popular")).to_have_count(10)
    assert [button.get_attribute("data-item-id") for button in recommended(page, "#popular").all()] == best
    expect(page.locator("#timing-legend")).to_contain_text("median of")


def test_settings_are_asked_for_and_limits_are_shown(page: Page) -> None:
    page.get_by_label("Items (k)").fill("3")
    expect(recommended(page)).to_have_count(3)
    page.get_by_label("Items (k)").fill("1000")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("1000")
    expect(alert).to_contain_text("limit")
    expect(alert).to_contain_text("100")
    expect(page.get_by_label("Items (k)")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Items (k)").fill("4")
    expect(recommended(page)).to_have_count(4)
    expect(alert).to_have_count(0)


def test_similar_items_and_from_there_a_new_user(page: Page) -> None:
    title = page.locator("#recommendations .title").nth(1).inner_text()
    recommended(page).nth(1).click()
    drawer = page.get_by_role("dialog")
    expect(drawer.get_by_role("heading")).to_have_text(title)
    expect(recommended(page, "#similar-items")).to_have_count(12)
    recommended(page, "#similar-items").first.click()
    expect(drawer.get_by_role("heading")).not_to_have_text(title)
    drawer.get_by_role("button", name="Back to the previous item").click()
    expect(drawer.get_by_role("heading")).to_have_text(title)
    drawer.get_by_role("button", name="Add to a new user's history").click()
    expect(drawer).to_be_hidden()
    expect(page.locator("#source")).to_have_text("Fold-in")
    expect(page.locator("#history li")).to_contain_text(title)


def test_a_history_by_keyboard_and_by_paste(page: Page) -> None:
    page.get_by_role("tab", name="New user").click()
    expect(page.get_by_text("No recommendations yet")).to_be_visible()
    search = page.get_by_role("combobox")
    search.fill("title 1")
    expect(page.get_by_role("option").nth(2)).to_be_visible()
    search.press("ArrowDown")
    chosen = page.get_by_role("option").nth(1)
    expect(chosen).to_have_attribute("aria-selected", "true")
    title = chosen.inner_text().splitlines()[0]
    search.press("Enter")
    expect(page.locator("#history li")).to_contain_text(title)
    expect(page.locator("#source")).to_have_text("Fold-in")
    page.get_by_text("Paste item ids").click()
    page.get_by_label("Item ids").fill("item-0007, item-0008\nabsent")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#history li")).to_contain_text(["Title", "Title", "Title", "absent"])
    expect(page.locator("#results-note")).to_contain_text("1 history item is not in this bundle")
    page.reload()  # the address holds the history
    expect(page.locator("#history li")).to_contain_text(["Title", "Title", "Title", "absent"])
    expect(recommended(page)).to_have_count(10)
    page.get_by_role("button", name="Remove absent").click()
    expect(page.locator("#history li")).to_have_count(3)
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_text("No recommendations yet")).to_be_visible()


def test_an_unknown_user_whose_id_looks_like_markup(page: Page) -> None:
    choose_user(page, "<img src=x onerror=alert(1)>/%2F?#")
    expect(page.locator("#source")).to_have_text("Popular")
    expect(page.locator("#results-note")).to_contain_text("<img src=x onerror=alert(1)>/%2F?# has no history")
    expect(page.locator("#seen-empty")).to_have_text("This user has no history.")
    assert page.locator("main img").count() == 0
    page.go_back()
    expect(page.locator("#source")).to_have_text("Two-stage")


def test_the_last_choice_wins_and_can_be_linked(page: Page, address: str) -> None:
    for user in range(6):
        page.get_by_role("button", name=f"user-0000{user}").click()
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#results-sub")).to_contain_text("user-00005")
    expect(page).to_have_url(f"{address}/#user=user-00005")
    page.goto(f"{address}/#user=user-00011")
    expect(page.locator("#results-sub")).to_contain_text("user-00011")
    expect(page.get_by_role("button", name="user-00011")).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("delayed", ["**/v1/recommend", "**/seen?*"])
def test_a_response_to_an_earlier_choice_is_not_shown(page: Page, delayed: str) -> None:
    held: list[Route] = []
    page.route(delayed, lambda route: held.append(route))  # noqa: PLW0108  (Playwright cannot wrap a built-in)
    with page.expect_response(re.compile("/seen" if "recommend" in delayed else "/recommend")):
        choose_user(page, "user-00003")
    page.get_by_role("tab", name="New user").click()
    expect(page.get_by_text("No recommendations yet")).to_be_visible()
    for route in held:
        route.continue_()
    assert held != []
    page.wait_for_timeout(300)
    expect(page.get_by_text("No recommendations yet")).to_be_visible()
    expect(page.locator("#seen-empty")).to_have_text("The history you enter appears here.")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    assert (recommended(page).count(), recommended(page, "#seen").count()) == (0, 0)


def test_candidates_are_the_servers_unless_given(page: Page) -> None:
    expect(page.locator("#request-text")).not_to_contain_text("num_candidates")
    page.get_by_label("Candidates").fill("30")
    expect(page.locator("#request-text")).to_contain_text('"num_candidates":30')


def test_a_history_in_the_address_may_hold_any_character(page: Page, address: str) -> None:
    page.goto(f"{address}/#history={quote(json.dumps(['item-0007', 'a, b; [c]']))}")
    expect(page.locator("#history li")).to_have_count(2)
    expect(page.locator("#history li")).to_contain_text(["Title", "a, b; [c]"])


def test_a_long_history_is_not_looked_up_title_by_title(page: Page, address: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/v1/similar/" in request.url else None)
    page.goto(f"{address}/#history={quote(json.dumps([f'absent-{n}' for n in range(300)]))}")
    expect(page.locator("#history li")).to_have_count(300)
    expect(page.locator("#history li").last).to_contain_text("absent-299")
    expect(page.locator("#seen-sub")).to_contain_text("As entered")
    assert 1 <= len(asked) <= 50


def test_a_server_that_is_gone_is_said_to_be(page: Page) -> None:
    page.route("**/v1/recommend", lambda route: route.fulfill(status=502, body="<html>Bad gateway</html>"))
    choose_user(page, "user-00001")
    expect(page.get_by_role("alert")).to_contain_text("The server answered 502")
    page.unroute("**/v1/recommend")
    page.get_by_role("button", name="Try again").click()
    expect(recommended(page)).to_have_count(10)


def test_a_phone_does_not_scroll_sideways(page: Page) -> None:
    page.set_viewport_size(PHONE)
    sideways = "document.documentElement.scrollWidth > innerWidth"
    assert not page.evaluate(sideways)
    recommended(page).first.click()
    expect(recommended(page, "#similar-items")).to_have_count(12)
    assert not page.evaluate(sideways)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_the_api_is_described_and_asked_without_the_internet(page: Page, address: str) -> None:
    outside: list[str] = []
    page.on("request", lambda request: None if request.url.startswith(address) else outside.append(request.url))
    page.get_by_role("link", name="API docs").click()
    expect(page.locator(".operation")).to_have_count(15)
    recommend = page.locator(".operation").first
    recommend.get_by_label("body").fill('{"user_id": "user-00003", "k": 3}')
    recommend.get_by_role("button", name="Send").click()
    expect(recommend.locator(".answer")).to_contain_text('"source": "two-stage"')
    expect(recommend.locator(".answer")).to_contain_text(re.compile(r"200 in [\d.]+ ms"))
    recommend.get_by_label("body").fill('{"k": 1000}')
    recommend.get_by_role("button", name="Send").click()
    expect(recommend.locator(".answer")).to_contain_text('"limit": 500')
    seen = page.locator(".operation", has_text="/v1/users/{user_id}/seen")
    seen.locator("summary").click()
    seen.get_by_label("user_id").fill("user-00003")
    seen.get_by_label("limit").fill("2")
    seen.get_by_role("button", name="Send").click()
    expect(seen.locator(".answer")).to_contain_text("item-")
    page.get_by_role("link", name="RecommendResponse").first.click()
    expect(page.locator("#RecommendResponse table")).to_contain_text("timings_ms")
    assert [url for url in outside if not url.startswith("data:")] == []


def test_ids_above_2_53_are_exact(rated_page: Page, rated_address: str) -> None:
    user = str(FIRST_ID + 2)
    rated_page.get_by_role("button", name=user, exact=True).click()
    expect(rated_page.locator("#source")).to_have_text("Two-stage")
    ids = [button.get_attribute("data-item-id") for button in recommended(rated_page).all()]
    assert len(set(ids)) == 10
    assert all(FIRST_ID <= int(one or 0) < FIRST_ID + 40 for one in ids)
    expect(rated_page.locator("#request-text")).to_contain_text(f'"user_id":"{user}"')
    rated_page.get_by_role("tab", name="New user").click()
    rated_page.get_by_text("Paste item ids").click()
    pasted = [FIRST_ID + number for number in (3, 4, 5)]
    rated_page.get_by_label("Item ids").fill(json.dumps(pasted))
    rated_page.get_by_role("button", name="Add", exact=True).click()
    expect(rated_page.locator("#history li")).to_contain_text(["Title 3", "Title 4", "Title 5"])
    rated_page.get_by_label("Item ids").fill(f"{FIRST_ID + 6} {FIRST_ID + 7}")
    rated_page.get_by_role("button", name="Add", exact=True).click()
    expect(rated_page.locator("#history li")).to_contain_text([f"Title {number}" for number in range(3, 8)])
    rated_page.goto(f"{rated_address}/#history={pasted}")
    expect(rated_page.locator("#history li")).to_contain_text(["Title 3", "Title 4", "Title 5"])
    expect(rated_page.locator("#results-note")).to_be_hidden()


def test_the_documentation_shows_ids_above_2_53_exactly(rated_page: Page) -> None:
    rated_page.get_by_role("link", name="API docs").click()
    users = rated_page.locator(".operation", has=rated_page.get_by_text("/v1/users", exact=True))
    users.locator("summary").click()
    users.get_by_label("limit").fill("2")
    users.get_by_role("button", name="Send").click()
    answer = users.locator(".answer pre")
    expect(answer).to_be_visible()
    assert answer.inner_text() == f'{{\n  "users": [\n    {FIRST_ID},\n    {FIRST_ID + 1}\n  ]\n}}'


def test_seen_items_show_their_ratings_and_recommendations_their_reasons(rated_page: Page) -> None:
    seen = rated_page.locator("#seen button")
    expect(rated_page.locator("#seen-title")).to_have_text("Seen")
    ratings = [float(text.split()[-2]) for text in rated_page.locator("#seen .rating").all_inner_texts()]
    assert len(ratings) == seen.count() >= 5
    assert set(ratings) <= {number / 2 for number in range(1, 11)}
    because = rated_page.locator("#recommendations .because").all_inner_texts()
    assert len(because) == 10  # 40 items: each is a neighbour of the others
    titles = rated_page.locator("#seen .title").all_inner_texts()
    for text in because:
        named = text.removeprefix("because you saw ").split(" · ")
        assert len(named) == 3
        assert set(named) <= set(titles)


def test_seen_items_without_ratings_show_none(page: Page) -> None:
    expect(page.locator("#seen button").first).to_be_visible()
    assert page.locator("#seen .rating").count() == 0
    expect(page.locator("#seen-title")).to_have_text("Seen")
