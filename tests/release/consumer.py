"""Run by the tests in an environment of mlflow, torch and transformers alone: load by alias, answer, say who answered, serve."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow

URI, PORT, PARAMS = sys.argv[1], int(sys.argv[2]), {"max_new_tokens": 8, "seed": 3}
try:
    import components
except ImportError:
    pass
else:
    raise SystemExit(f"the checkout is in sight: {components.__path__}")
model = mlflow.pyfunc.load_model(URI)
told = {"mlflow": mlflow.__version__, "text": model.predict(["The king"], params=PARAMS)[0], "about": model.unwrap_python_model().about(), "metadata": model.metadata.metadata}
folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=URI, dst_path="kept"), "artifacts", "model")
for name, entry in json.loads((folder / "manifest.json").read_bytes())["files"].items():
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"], name
told["weights"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
told["strangers"] = sorted({name.split(".")[0] for name in sys.modules} & {"components", "flows", "prefect", "dvc", "great_expectations"})
try:
    urllib.request.urlopen("http://127.0.0.1:" + os.environ["MLFLOW_TRACKING_URI"].rsplit(":", 1)[1], timeout=2)
except OSError:
    told["alone"] = True  # this is another host: nothing listens on its own loopback

def ask(params, prompt="The king"):
    body = json.dumps({"inputs": [prompt], "params": params}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/invocations", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["predictions"][0]

with open("serve.log", "wb") as log:
    line = [sys.executable, "-m", "mlflow", "models", "serve", "-m", URI, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(PORT)]
    server = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
try:
    for _ in range(600):
        try:
            told["served"] = ask(PARAMS)
            break
        except urllib.error.URLError:
            if server.poll() is not None:
                raise SystemExit(Path("serve.log").read_text()) from None
            time.sleep(0.2)
    told["served_about"] = json.loads(ask({"about": True}, ""))
finally:
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(30)
told["serve_log"] = Path("serve.log").read_text()
print(json.dumps(told))
