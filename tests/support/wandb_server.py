"""A stand-in for Weights & Biases on loopback: as much of its GraphQL and file stream as its client asks for."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Wandb:
    """``with Wandb() as server``: ``server.url``, and what has arrived in it."""

    def __init__(self) -> None:
        self.lines: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        """Run → offset → row of its history."""
        self.configs: dict[str, dict[str, Any]] = {}
        self.upserts: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.operations: list[str] = []
        self.down = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if server.down:
                    self._reply(503, {})
                    return
                server.keys.add(self.headers.get("Authorization", ""))
                answer: dict[str, Any] = {}
                if self.path.startswith("/graphql"):
                    answer = server.answer(json.loads(body))
                elif self.path.endswith("/file_stream"):
                    server.stream(self.path.split("/")[-2], json.loads(body))
                self._reply(200, answer)

            do_PUT = do_POST

            def do_GET(self) -> None:
                self._reply(200, {})

            def _reply(self, status: int, content: Any) -> None:
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Wandb:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def history(self, run: str) -> list[dict[str, Any]]:
        """The rows of a run, in the order of their offsets."""
        return [row for _, row in sorted(self.lines[run].items())]

    def stream(self, run: str, content: dict[str, Any]) -> None:
        history = content.get("files", {}).get("wandb-history.jsonl")
        if history is not None:
            for number, line in enumerate(history["content"]):
                self.lines[run][history["offset"] + number] = json.loads(line)

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        query, variables = question.get("query", ""), question.get("variables") or {}
        name = question.get("operationName") or query.split("{")[0].split("(")[0].split()[-1]
        self.operations.append(name)
        if "upsertBucket" in query:
            self.upserts.append(variables)
            run = str(variables.get("name") or variables.get("id"))
            if variables.get("config"):
                self.configs[run] = json.loads(variables["config"])
            return {"data": {"upsertBucket": {"bucket": self._bucket(run, variables), "inserted": not self.lines[run]}}}
        if "createRunFiles" in query:
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in variables.get("files", [])]
            return {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}}
        if "model(" in query or "bucket(" in query:
            run = str(variables.get("name") or variables.get("run"))
            return {"data": {"model": {"bucket": self._resumed(run), "entity": {"name": "us"}, "name": "p"}}}
        if "viewer" in query:
            viewer = {"id": "1", "entity": "us", "username": "us", "flags": "{}", "teams": {"edges": []}}
            return {"data": {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}, "features": []}}}
        return {"data": {}}

    def _bucket(self, run: str, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"name": variables.get("project") or "p", "entity": {"name": "us"}}
        return {
            "id": run, "name": run, "displayName": variables.get("displayName") or run, "description": "",
            "config": "{}", "sweepName": None, "historyLineCount": len(self.lines[run]), "project": project,
        }  # fmt: skip

    def _resumed(self, run: str) -> dict[str, Any] | None:
        history = self.history(run)
        if run not in self.configs:
            return None
        return {
            "id": run, "name": run, "summaryMetrics": json.dumps(history[-1] if history else {}), "displayName": run,
            "logLineCount": 0, "historyLineCount": len(history), "eventsLineCount": 0, "tags": [],
            "historyTail": json.dumps([json.dumps(row) for row in history[-1:]]), "eventsTail": "[]",
            "config": "{}", "wandbConfig": json.dumps({"t": {}}),
        }  # fmt: skip
