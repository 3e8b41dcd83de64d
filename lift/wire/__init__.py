"""What travels between sites and server: one declaration of every answer's tensors.

`names` spells each tensor's name once. `groups` says in plain words what leaves a site. `answers`
gives the form of a whole answer under a plan: the site's gate refuses anything else before it
leaves, the server's review refuses it when it arrives, and the journal and SECURITY.md quote the
same sentences.
"""
