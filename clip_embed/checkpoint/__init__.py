"""Published weights: the formats, where they come from, and how they become tensors.

manifest            names, checksums and sizes of what was published
safetensors_header  which bytes of a shard are which tensor
location            parse and validate locations, for reader and publisher
credentials         Google's Application Default Credentials, for private buckets
stores              read bytes from a directory, a web server or a bucket
download_queue      which range is requested next, and which a second time
fetch               one verified block, with retries
cache               verified files on this machine's disk
load                verified blocks become tensors on a device
"""
