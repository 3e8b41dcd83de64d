"""Flower 1.41: the only package that imports it.

A parcel becomes a Flower `Message` with one `ConfigRecord`: the JSON text, and the safetensors
block, compressed.

=============  =====================================================================
module         what runs there
=============  =====================================================================
`records`      parcels to Flower's records and back
`apps`         the site's ClientApp, the server's ServerApp, exchanges over a Grid
`in_process`   all of it in one process, through Flower's own serialisation
`superlink`    the server's child process: one app behind two listeners
`coordinator`  starts that child, admits sites, opens a run, hands out its Grid
`collecting`   the Grid that the run uses: no reply holds it up or ends it
`supernode`    the site's child process: the connection to the server
`executor`     the site's own process answers requests: no code ever arrives
=============  =====================================================================

Flower moves its modules at every release: `tests/lift/protocol/test_private_symbols.py` names
every private symbol in use.

Flower reports to its makers unless told otherwise. `lift/process.py` says so in each process of
ours and in the children; `children.forbid_telemetry` where a child's work is done in another one.
"""
