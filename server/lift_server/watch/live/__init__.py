"""The live page: a read-only view of a run in a process of its own.

It reads the files that the server writes anyway, and nothing else: no request of a browser ever
reaches the server's process, and a page that dies takes nothing with it.

============  ==========================================================================
module        what is there
============  ==========================================================================
`snapshot`    the files as one JSON document, read at most once a second
`exposition`  the same numbers in Prometheus' text format
`app`         the HTTP side: five paths, GET alone, the local host's name alone
`process`     starts the page beside a server, and again when it dies
`__main__`    the page's process
============  ==========================================================================
"""
