"""Open indexes behind a page for people and JSON over HTTP for scripts; the extra `serve`.

- `app` puts it together; `listening` binds a port and runs it. `guard` is what every request passes
  first: Host, Origin, token, size.
- `served_index` holds an open index and the queue before it; `options` is what may be asked.
- `pictures` checks uploads and encodes what goes out.
- `comparison` and `standing` make rows of pictures that no report has.
- `api` answers in JSON, `documents` says in which; `pages` answers in HTML, with templates/ and
  those of the report.
"""
