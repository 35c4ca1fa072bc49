"""The aggregator's HTTP port: metrics, probes, service discovery, the live page.

server.py    one aiohttp application in the aggregator's event loop; listens, ends
guard.py     who may ask: host names, bearer tokens, the session cookie, headers of every answer
sessions.py  sessions and the limit on bad sign-ins, pure
routes.py    /metrics /healthz /readyz /sd /nodes/NAME/metrics /signin /signout and the page's files
live.py      /api/state and /api/events
feed.py      one snapshot for all who watch, told as changes; slow and many watchers are bounded
snapshot.py  the parts of the aggregator as plain JSON
troubles.py  what is wrong, in words; pure
page/        HTML, CSS and script as a browser gets them
"""
