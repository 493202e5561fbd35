"""FastAPI: `BackgroundTasks`. `TASK_KIND` is async, or sync: in the thread pool, as FastAPI runs them."""

import os
from threading import Lock

from fastapi import BackgroundTasks, FastAPI

TASKS = ("주문 확인", "재고 차감", "알림 발송")
app = FastAPI()
counts = {"answered": 0, "executed": 0}
lock = Lock()
last = ""


def record(line: str) -> None:
    global last
    last = line
    with lock:
        counts["executed"] += 1


async def record_async(line: str) -> None:
    record(line)


task = record if os.environ["TASK_KIND"] == "sync" else record_async


@app.get("/counts")
async def get_counts() -> dict:
    return counts


@app.post("/order")
async def order(item: str, tasks: BackgroundTasks) -> dict:
    counts["answered"] += 1
    for name in TASKS:
        tasks.add_task(task, f"{name}: {item}")
    return {"message": f"주문 완료: {item}"}
