"""What would have been noticed without the gate: by a script that prints what it gets, and by a health check alone."""

import requests

TIMEOUT_S = 15.0


def script_stops(url: str, token: str | None = None) -> str:
    """Why a script that talks to the server at ``url``, prints the answers and asserts nothing, stops; or nothing.

    It stops where a call raises: no answer, an HTTP error, no JSON, no such key. Who wrote it has the ``token``.
    """

    def call(method: str, url: str, body: object = None):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = requests.request(method, url, json=body, headers=headers, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()

    try:
        print(call("GET", f"{url}/health")["status"])
        print(call("GET", f"{url}/slots")["slots"])
        for slot in ("slot_0", "slot_1"):
            for tool, args in (
                ("bash", {"command": "echo hello; pwd; ls -la; hostname"}),
                ("bash", {"command": "python3 -c 'print(6 * 7)'"}),
                ("write_file", {"path": "hello.txt", "content": "hello"}),
                ("read_file", {"path": "hello.txt"}),
                ("bash", {"command": "cat hello.txt; exit 3"}),
            ):
                result = call("POST", f"{url}/execute", {"slot_id": slot, "tool": tool, "args": args})
                print(slot, tool, result["success"], result["output"], result["error"])
        echo = {"tool": "bash", "args": {"command": "echo batch"}}
        for result in call("POST", f"{url}/batch", [{"slot_id": slot, **echo} for slot in ("slot_0", "slot_1")]):
            print(result["output"])
        print(call("POST", f"{url}/reset", {"slot_id": "slot_0"})["success"])
    except (requests.RequestException, KeyError, TypeError) as error:
        return repr(error)
    return ""


def probe_fails(url: str) -> str:
    """Why ``GET /health`` is not 200; or nothing: all that a load balancer or a health check of Nomad's asks."""
    try:
        requests.get(f"{url}/health", timeout=TIMEOUT_S).raise_for_status()
    except requests.RequestException as error:
        return repr(error)
    return ""
