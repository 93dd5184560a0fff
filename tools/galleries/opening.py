"""From a store's address to the engine behind it."""

from __future__ import annotations

from tools.galleries.lancedb import LanceStore
from tools.galleries.milvus import MilvusStore, is_milvus
from tools.galleries.schema import StoreMeta
from tools.galleries.store import Store
from utils.errors import UserError


def open_store(address: str) -> Store:
    """Opens a store: ``milvus://HOST[:PORT]`` and ``FILE.db`` are Milvus, all else is LanceDB's."""
    return MilvusStore.open(checked(address)) if is_milvus(address) else LanceStore.open(checked(address))


def create_store(address: str, meta: StoreMeta) -> Store:
    """Creates a store. Raises ``UserError`` if there is one."""
    if is_milvus(address):
        return MilvusStore.create(checked(address), meta)
    return LanceStore.create(checked(address), meta)


def checked(address: str) -> str:
    """Returns an address. Raises ``UserError`` if it cannot be one."""
    if not address or not address.isprintable():
        raise UserError("--store: name a folder, an object store's address, milvus://HOST:PORT or FILE.db")
    return address
