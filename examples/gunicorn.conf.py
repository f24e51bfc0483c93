"""gunicorn, whatever its worker: refuse an upload, so that the refusal arrives.

    gunicorn -c examples/gunicorn.conf.py
    gunicorn -c examples/gunicorn.conf.py -k gthread
    gunicorn -c examples/gunicorn.conf.py -k uvicorn_worker.UvicornWorker uvicorn_server:app

The applications are those of the examples beside this file.
"""

from pathlib import Path

# This is what matters: five of gunicorn's hooks. Without a configuration file of one's own,
# `gunicorn -c python:graceful_close.gunicorn app:app` does the same.
from graceful_close.gunicorn import *

bind = "127.0.0.1:8413"
chdir = str(Path(__file__).parent)
wsgi_app = "wsgiref_server:app"
