"""Makes the helpers beside this file importable from every folder of tests."""

import signal

from hypothesis import settings

settings.register_profile("nightly")  # what it draws more of is said at each property

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts a job in the background has it ignore interrupts, and so would every
    # command that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
