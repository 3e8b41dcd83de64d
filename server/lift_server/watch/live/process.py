"""The page of a running server. It is started with the server and restarted if it dies."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Final

from lift.config.server import ServerConfig
from lift.files import write_atomically
from lift.protocol.flower.children import end_child, start_child

logger = logging.getLogger(__name__)
_SETTINGS_FILE: Final = "page.json"
_LOG_FILE: Final = "page.log"
_FIRST_PAUSE_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.3


@contextlib.contextmanager
def live_page(config: ServerConfig, say: Callable[[str], None]) -> Iterator[None]:
    """The page runs inside the block, in a process of its own; nothing of it can end the block.

    Args:
        config: the server's settings; without `page_port` there is no page.
        say: tells the operator where the page is, or once that there is none.
    """
    if config.page_port is None:
        yield
        return
    over = threading.Event()
    keeper = threading.Thread(target=_keep, args=(config, say, over), name="page", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()


def page_url(config: ServerConfig) -> str:
    """Where a browser on this machine finds the page."""
    host = f"[{config.page_host}]" if ":" in config.page_host else config.page_host
    return f"http://{host}:{config.page_port}/"


def _keep(config: ServerConfig, say: Callable[[str], None], over: threading.Event) -> None:
    pause, told = _FIRST_PAUSE_S, False
    while not over.is_set():
        try:
            told = _one(config, say, over, told=told)
        except OSError as error:
            logger.warning("event=page_not_started reason=%s", error.strerror)
        if over.is_set():
            return
        logger.warning("event=page_ended again_in_s=%.0f", pause)
        over.wait(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def _one(
    config: ServerConfig, say: Callable[[str], None], over: threading.Event, *, told: bool
) -> bool:
    """Run the page's process once. Return whether the operator was informed."""
    settings = config.state / _SETTINGS_FILE
    write_atomically(settings, config.model_dump_json().encode(), mode=0o600)
    child = start_child("lift_server.watch.live", str(settings), config.state / _LOG_FILE)
    answered = False
    try:
        while child.poll() is None and not over.wait(_LOOK_EVERY_S):
            if not answered and _answers(config):
                answered = True
                logger.info("event=page_up port=%s pid=%d", config.page_port, child.pid)
                if not told:
                    say(f"live page: {page_url(config)}")
                    told = True
        if not answered and not told and not over.is_set():
            say(f"no live page: see '{config.state / _LOG_FILE}'; the run goes on without it")
            told = True
    finally:
        end_child(child)
    return told


def _answers(config: ServerConfig) -> bool:
    try:
        with socket.create_connection((config.page_host, config.page_port or 0), timeout=1.0):
            return True
    except OSError:
        return False
