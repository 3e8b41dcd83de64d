"""Linked three-plane views of volumes in a browser, with NiiVue: in a report, or by `lift view`.

==============  =======================================================================
file            what is there
==============  =======================================================================
`volumes`       volumes as the small NIfTI files that the page reads
`embedded`      a viewer inside a page that carries everything with it
`served`        `lift view`: a server for one reader on this machine
`viewer.js`     the views: linked crosshair, window, side by side, swipe, difference
`embedded.js`   unpacks what such a page carries
`served.js`     fetches what the server has
`niivue.js`     NiiVue itself, put here when the project is built (`hatch_build.py`)
==============  =======================================================================
"""
