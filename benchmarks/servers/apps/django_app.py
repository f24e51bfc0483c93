"""Django, in one file: `application` and `asgi_application`; as a program, its manage.py."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from benchmarks.servers.application import GREETING, early_reply
from benchmarks.servers.apps import asgi, wsgi

conf: Any = import_module("django.conf")
if not conf.settings.configured:
    conf.settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        WSGI_APPLICATION=f"{__name__}.application",
        SECRET_KEY="not used",
    )
http: Any = import_module("django.http")
urls: Any = import_module("django.urls")


def hello(_request: Any) -> Any:
    return http.HttpResponse(GREETING)


def refuse(_request: Any, size: str) -> Any:
    status, body = early_reply(size)
    return http.HttpResponse(body, status=status)


urlpatterns = [urls.path("", hello), urls.path("<size>", refuse)]
application: Any = wsgi(import_module("django.core.wsgi").get_wsgi_application())
asgi_application: Any = asgi(import_module("django.core.asgi").get_asgi_application())

if __name__ == "__main__":
    import_module("django.core.management").execute_from_command_line(sys.argv)
