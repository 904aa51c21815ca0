"""Milliseconds of both stages without HTTP, by catalogue size: `python -m benchmarks.serve_kernel`.

A request is a known user of 165 seen items; 200 candidates are reranked to 10 by NeuMF (widths 64 and 128-64-32), one
thread. Items are points around cluster centres, users near some of them, as trained vectors are; random directions
would have no neighbours to find. Also printed: what publishing costs, and the memory that a second process of the same
bundle adds.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from benchmarks.serve_load_bundle import NUM_ITEMS, NUM_USERS, write_registry
from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.serving.stages import use_one_thread

MAX_ONE_MS, MAX_64_MS, MAX_P99_RATIO, MIN_RECALL = 0.25, 6.0, 2.0, 0.95
MAX_SECOND_PART, MAX_PUBLISH_S = 0.3, 300.0
BATCH = 64


def _measure(registry: Path, num_requests: int) -> dict[str, float]:
    use_one_thread()
    recommender = Recommender(Registry(registry).open())
    users = np.random.default_rng(0).integers(0, NUM_USERS, num_requests).tolist()
    queries = [Query(user_idx=user) for user in users]
    for query in queries[:50]:
        recommender.recommend(query)
    one = [_ms(recommender, [query]) for query in queries]
    batches = [_ms(recommender, queries[first : first + BATCH]) for first in range(0, num_requests - BATCH, BATCH)]
    return {"p50_ms": _rounded(np.median(one)), "p99_ms": _rounded(np.percentile(one, 99)),
            "batch_64_ms": _rounded(np.median(batches))}  # fmt: skip


def _ms(recommender: Recommender, queries: list[Query]) -> float:
    start_s = time.perf_counter()
    candidates = recommender.recaller.recall_all(queries)
    recommender.reranker.rerank_all(queries, candidates)
    return (time.perf_counter() - start_s) * 1e3


def _rounded(value: Any) -> float:
    return round(float(value), 3)


def _hold(registry: Path, ready: Any, finish: Any) -> None:
    use_one_thread()
    baseline = psutil.Process().memory_full_info().uss
    recommender = Recommender(Registry(registry).open())
    for user in range(200):
        recommender.recommend(Query(user_idx=user))
    memory = psutil.Process().memory_full_info()
    ready.put((memory.rss - baseline, memory.uss - baseline))
    finish.wait()


def _memory(registry: Path) -> dict[str, float]:
    """Returns the memory that the first of two processes uses for a bundle, and what the second adds, MB."""
    context = multiprocessing.get_context("spawn")
    ready, finish = context.Queue(), context.Event()
    processes, measured = [context.Process(target=_hold, args=(registry, ready, finish)) for _ in range(2)], []
    for process in processes:
        process.start()
        measured.append(ready.get(timeout=300))
    finish.set()
    for process in processes:
        process.join()
    (first, _), (_, second) = measured
    return {
        "first_mb": round(first / 1e6, 1),
        "second_mb": round(second / 1e6, 1),
        "second_part": round(second / first, 3),
    }


def _row(num_items: int, num_requests: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        start_s = time.perf_counter()
        registry = write_registry(Path(directory), num_items)
        publish_s = time.perf_counter() - start_s
        manifest = Registry(registry).open().manifest
        measured = _measure(registry, num_requests)
        row = {"items": num_items, **measured, "publish_s": round(publish_s, 1), "method": manifest.recall.method}
        found = {"recall": manifest.recall.recall, "neighbour_recall": manifest.neighbour_recall}
        return {**row, **found, **_memory(registry)}


def _misses(rows: list[dict[str, Any]]) -> list[str]:
    first, misses = rows[0], []
    for row in rows:
        checks = {
            "p99_ms": row["p99_ms"] <= MAX_P99_RATIO * first["p99_ms"],
            "recall": min(row["recall"], row["neighbour_recall"]) >= MIN_RECALL,
            "publish_s": row["publish_s"] <= MAX_PUBLISH_S,
            "second_part": row["items"] < 100_000 or row["second_part"] <= MAX_SECOND_PART,
            "p50_ms": row["items"] > NUM_ITEMS or row["p50_ms"] <= MAX_ONE_MS,
            "batch_64_ms": row["items"] > NUM_ITEMS or row["batch_64_ms"] <= MAX_64_MS,
        }
        misses += [
            f"{row['items']} items: {name} = {row.get(name)}" for name, is_reached in checks.items() if not is_reached
        ]
    return misses


@click.command()
@click.option("--items", default=(NUM_ITEMS,), multiple=True, help="Catalogue sizes, the smallest first.")
@click.option("--requests", default=2000, help="Requests per size.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--check", is_flag=True, help="Exit 1 if a target is missed.")
def main(items: tuple[int, ...], requests: int, as_json: bool, check: bool) -> None:
    rows = [_row(num_items, requests) for num_items in items]
    misses = _misses(rows)
    if as_json:
        click.echo(json.dumps({"rows": rows, "misses": misses}))
    else:
        for row in rows:
            click.echo("  ".join(f"{name} {value}" for name, value in row.items()))
        click.echo("\n".join(misses) or "every target is reached")
    if check and misses:
        sys.exit(1)


if __name__ == "__main__":
    main()
