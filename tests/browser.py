"""A browser for tests: Chromium over its own debugging pipe, without a network and without another package."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(
    (p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None
)
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
          "--disable-background-networking", "--no-first-run", "--hide-scrollbars")  # fmt: skip

_DESCRIPTORS = """
import os, sys
os.dup2(int(sys.argv[1]), 63)
os.dup2(int(sys.argv[2]), 64)
os.dup2(63, 3)
os.dup2(64, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""  # the browser reads descriptor 3 and writes descriptor 4; in a process of its own, for JAX forbids to fork this one


class Page:
    """One page: what it asked for, what it complained about, how it looks."""

    def __init__(self, ask: int, answer: int):
        self._ask, self._answer, self._number, self._rest = ask, answer, 0, b""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the page."""
        return self._call(method, self._session, **parameters)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._ask, json.dumps(message).encode() + b"\0")
        while True:
            told = self._read()
            if told.get("id") == self._number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return told["result"]
            self._note(told)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            block = os.read(self._answer, 1 << 20)
            if not block:
                raise RuntimeError("the browser closed its pipe")
            self._rest += block
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def _note(self, told: dict[str, Any]) -> None:
        method, parameters = told.get("method"), told.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif method in {"Runtime.exceptionThrown", "Runtime.consoleAPICalled"}:
            self.complaints.append(json.dumps(parameters))

    def open(self, path: Path) -> None:
        """Load a file and wait until it and its images are there."""
        self.call("Page.navigate", url=path.absolute().as_uri())
        script = """new Promise(done => {
            const all = () => Promise.all([...document.images].map(image => image.decode())).then(done, done);
            if (document.readyState === 'complete') all(); else addEventListener('load', all);
        })"""
        self.call("Runtime.evaluate", expression=script, awaitPromise=True)

    def value(self, expression: str) -> Any:
        """The value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def dark(self, wanted: bool) -> None:
        """Ask for the dark or the light colours."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if wanted else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def picture(self, path: Path) -> None:
        """Save what the whole page looks like."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def opened(folder: Path, *, width: int = 1200, height: int = 900) -> Iterator[Page]:
    """A page in a browser that keeps its files in the folder."""
    assert PROGRAM is not None
    ask_there, ask = os.pipe()
    answer, answer_there = os.pipe()

    command = [
        sys.executable, "-c", _DESCRIPTORS, str(ask_there), str(answer_there),
        PROGRAM,
        *_FLAGS,
        f"--user-data-dir={folder}",
        f"--window-size={width},{height}",
        "about:blank",
    ]  # fmt: skip
    with subprocess.Popen(
        command, pass_fds=(ask_there, answer_there), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as browser:
        os.close(ask_there)
        os.close(answer_there)
        try:
            yield Page(ask, answer)
        finally:
            browser.terminate()
            browser.wait(20)
            os.close(ask)
            os.close(answer)
