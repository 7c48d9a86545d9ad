"""A small cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class LRU:
    """Least recently used first out; safe for threads. A copy or a pickle of it is empty.

    Args:
        limit: greatest sum of the weights of what is kept; the newest item is kept whatever it weighs.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.items: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        return LRU, (self.limit,)

    def get(self, key: Any, make: Callable[[], Any], weight: int = 1) -> Any:
        """The value of ``key``, made by ``make()`` where it is not kept."""
        with self._lock:
            if key in self.items:
                self.items.move_to_end(key)
            else:
                self.items[key] = make(), weight
            value = self.items[key][0]
            while len(self.items) > 1 and sum(weight for _, weight in self.items.values()) > self.limit:
                self.items.popitem(last=False)
            return value
