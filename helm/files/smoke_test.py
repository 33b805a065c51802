"""Run by `helm test`: both APIs have to be ready; fits a profile by REST, generates a personalised answer, cleans up.

`/ready` names what is missing: the database (as the role alignez_app sees it), its migration, the broker, the model.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid

CONTROL, INFERENCE = os.environ["CONTROL_URL"], os.environ["INFERENCE_URL"]
DEADLINE = time.monotonic() + float(os.environ["TIMEOUT_SECONDS"])


def call(method, url, body=None):
    """The decoded answer; ends the test with the server's own words when there is none."""
    request = urllib.request.Request(
        url,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"authorization": "Bearer " + os.environ["API_KEY"], "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        sys.exit(f"{method} {url}: {error.code} {error.read().decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"{method} {url}: {error}")


# Small, and of the method that every engine can fit; whatever its proof says, the version is asked for by its number.
FIT = {
    "method": "alignez",
    "neighbors": 4,
    "answers": 16,
    "tune_queries": 0,
    "held_out_queries": 4,
    "answer_tokens": 24,
}

for url in (CONTROL, INFERENCE):
    call("GET", f"{url}/ready")

name = f"helm-test-{uuid.uuid4().hex[:8]}"
made = call(
    "POST",
    f"{CONTROL}/v1/profiles",
    {
        "name": name,
        "persona": {"preferred": "cheerful", "dispreferred": "gloomy"},
        "fit": FIT,
    },
)
try:
    job = made["job"]
    while job["status"] in ("queued", "running"):
        if time.monotonic() > DEADLINE:
            sys.exit(
                f"job {job['id']} is still {job['status']} (stage {job.get('stage')}): are worker and relay running?"
            )
        time.sleep(2)
        job = call("GET", f"{CONTROL}/v1/jobs/{job['id']}")
    if job["status"] != "succeeded":
        sys.exit(f"job {job['id']} {job['status']}: {job.get('error')}")
    models = call("GET", f"{INFERENCE}/v1/models")["data"]
    base = next(model["id"] for model in models if "@" not in model["id"])
    answer = call(
        "POST",
        f"{INFERENCE}/v1/chat/completions",
        {
            "model": f"{base}@{name}#1",
            "messages": [{"role": "user", "content": "How do I start hiking?"}],
            "max_tokens": 32,
        },
    )
    applied = answer["alignez"]
    if applied["profile"] != name or not answer["choices"][0]["message"]["content"]:
        sys.exit(f"not a personalised answer: {json.dumps(answer)}")
    print(f"ok: {name} version {applied['version']}: {answer['choices'][0]['message']['content']!r}")
finally:
    call("DELETE", f"{CONTROL}/v1/profiles/{name}")
