"""Copies those inputs into a folder that together reach the most code, few and small ones. What a merge of libFuzzer leaves
may be more than is to be committed.

Usage: keep.py CONTROL_FILE FOLDER COUNT BYTES      (the file is that of -merge_control_file with -set_cover_merge=1, which says
all that each input reaches; the names of the copies are of what is in them)
"""
import hashlib
import heapq
import pathlib
import sys

control, folder, count, size = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

lines = control.read_text().splitlines()
total = int(lines[0])
paths = lines[2 : 2 + total]
features: dict[int, set[str]] = {}
for line in lines[2 + total :]:
    word, number, *reached = line.split()
    if word == "FT":
        features[int(number)] = set(reached)


def order(number: int) -> tuple[int, int, str]:
    """The one that adds the most comes first, of equals the smallest."""
    return -len(features[number] - covered), pathlib.Path(paths[number]).stat().st_size, paths[number]


# What an input adds only falls as others are taken: one that is still the best when looked at again is the best.
covered: set[str] = set()
heap = [(order(number), number) for number in features]
heapq.heapify(heap)
while heap and count:
    known, number = heapq.heappop(heap)
    gain, length, path = order(number)
    if gain == 0 or length > size:
        continue
    if (gain, length, path) > known:
        heapq.heappush(heap, ((gain, length, path), number))
        continue
    covered |= features[number]
    data = pathlib.Path(path).read_bytes()
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    count, size = count - 1, size - length
everything = set().union(*features.values()) if features else set()
print(f"{len(list(folder.iterdir()))} inputs, {len(covered)} of {len(everything)} features")
