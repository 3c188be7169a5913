"""How much is read from files: every bound that a file of a few bytes, or of very many, must not get past."""

from __future__ import annotations

# settings: YAML and JSON that people and other programs write
SETTINGS_BYTES = 256 * 1024  # a second of parsing or two
# values and names with all aliases written out: no more than a file without aliases has
SETTINGS_NODES = SETTINGS_BYTES
SETTINGS_VALUES = 10_000  # settings of a run, nested ones too
SETTINGS_DEPTH = 20  # mappings and lists inside each other
SETTINGS_LIST = 20  # values that are one setting; those of a longer list are a setting each
SETTING_LETTERS = 300  # of a longer value the hash tells it apart
NUMBER_LETTERS = 100  # of an integer, or a number or date in YAML; thousands of digits cannot be printed

# JSON that whatwhere wrote: a verdict on many runs has a few million bytes
DOCUMENT_BYTES = 2**28
CACHE_BYTES = 2**31  # the doctor's cache: 600 bytes an image

# a bundle's preprocessing enlarges images to this at most
IMAGE_SIDE = 8_192

# tables of figures, read whole
TABLE_BYTES = 64 * 2**20
TABLE_COLUMNS = 2_000
TABLE_LINES = 500_000
ARMS = 200  # the time of a verdict grows with their square
NAME_LETTERS = 300  # an arm, a seed or a figure; sentences and tables hold several names
CURVE_BYTES = 2**28  # a run's table with a line for each epoch
CURVE_LINE_LETTERS = 100_000
RUN_FOLDERS = 100_000  # folders in which runs are looked for

# lists of images, read whole
IMAGE_LIST_BYTES = 2**30

# weights files
WEIGHTS_ENTRIES = 50_000  # tensors and other values by name; the largest networks of timm have 5,000
WEIGHTS_DEPTH = 8  # mappings around the tensors, and modules around a network
WEIGHTS_NETWORKS = 100  # networks in one file that are told apart
WEIGHTS_VALUES = 5_000_000  # steps that a pickle takes, and values that it copies: a minute, and 1 GB at most
WEIGHTS_PACKED = 2  # bytes of content for each byte of the file: other programs than torch.save may pack a little
WEIGHTS_SHARED = 16  # bytes that tensors may have for each byte in the file, where they share memory
SHARED_BYTES = 64 * 2**20  # that many they may have anyway
TENSOR_NAME_LETTERS = 500

# a network in a YAML of Ultralytics: many times what its largest one has
NETWORK_REPEATS = 1_000
NETWORK_SIZES = {"modules": 20_000, "parameters": 500_000_000, "values of buffers": 50_000_000}
