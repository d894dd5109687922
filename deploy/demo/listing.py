"""A marketplace listing's tasks. The program is given one JSON document, prints its result, and fails by its exit code."""

import json
import os
import pathlib
import sys
import time

EX_TEMPFAIL = 75  # "try again later", from sysexits.h

document = json.load(sys.stdin)
task, product = document["task"], document["job"]["payload"]["product_id"]
demo = pathlib.Path(os.environ["DEMO_DIR"])

time.sleep(0.4)  # what a real upload would take

# Every call leaves a line, so that the demonstration can count what was really done.
with open(demo / "calls.log", "a") as calls:
    calls.write(f"{document['job']['id']} {task['label']}\n")

if task["handler"] == "upload_image":
    index = task["input"]["index"]
    if index == document["job"]["payload"].get("flaky_image") and task["attempt"] <= 2:
        sys.exit(f"the image store answered 503 for image {index}")  # exit code 1: any code but 65 is tried again
    print(json.dumps({"url": f"https://images.example/{product}/{index}.jpg"}))

elif task["handler"] == "create_listing":
    if (demo / "marketplace-is-down").exists():
        print("the marketplace is down", file=sys.stderr)
        sys.exit(EX_TEMPFAIL)
    images = [done["result"]["url"] for done in document["results"] if done["handler"] == "upload_image"]
    print(json.dumps({"listing": f"https://market.example/{product}", "images": len(images)}))
