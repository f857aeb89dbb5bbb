"""What a process does about its memory, in a process of its own each time."""

import subprocess
import sys

BUFFERS = """
import resource
from cmkfs.keys.memory import give_back_heap, keep_heap

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        pair = bytearray(135168), bytearray(135168)
        del pair
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

keep_heap()
faults(10)
print(faults(100))
many = [bytearray(100_000) for _ in range(100)]
full = resident()
del many
kept = resident()
give_back_heap()
print(full - kept, full - resident())
"""


def test_buffers_are_kept_for_the_next_request_and_given_back_when_asked() -> None:
    ran = subprocess.run([sys.executable, "-c", BUFFERS], check=True, capture_output=True, text=True)
    faults, at_once, when_asked = map(int, ran.stdout.split())
    assert faults < 100
    assert at_once < 100  # pages of 4 KiB; the buffers have 2,400
    assert when_asked > 2000
