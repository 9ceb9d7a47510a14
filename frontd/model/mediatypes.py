"""The media type of a file by its name's extension, from one fixed table.

The table is our own, so that a file has the same type on every machine and under every version of Python
(``/etc/mime.types`` differs, and `mimetypes` reads it).  Text is UTF-8.  What the table does not know is
``application/octet-stream``, which a browser stores and does not run.

Sources: the IANA registry, RFC 9239 (JavaScript is ``text/javascript``), nginx's ``mime.types`` for what is commonly
served.
"""

from __future__ import annotations

UNKNOWN = b"application/octet-stream"

_TEXT = """
css text/css
csv text/csv
htm html text/html
ics text/calendar
js mjs text/javascript
log txt text/plain
markdown md text/markdown
tsv text/tab-separated-values
vcf text/vcard
vtt text/vtt
"""

_OTHER = """
3gp video/3gpp
7z application/x-7z-compressed
aac audio/aac
apk application/vnd.android.package-archive
apng image/apng
atom application/atom+xml
avi video/x-msvideo
avif image/avif
bmp image/bmp
bz2 application/x-bzip2
cer crt der application/pkix-cert
doc application/msword
docx application/vnd.openxmlformats-officedocument.wordprocessingml.document
eot application/vnd.ms-fontobject
epub application/epub+zip
flac audio/flac
geojson application/geo+json
gif image/gif
glb model/gltf-binary
gltf model/gltf+json
gz tgz application/gzip
heic image/heic
heif image/heif
ico image/x-icon
jar application/java-archive
jpeg jpg image/jpeg
json map application/json
jsonld application/ld+json
jxl image/jxl
m3u8 application/vnd.apple.mpegurl
m4a audio/mp4
m4s m4v mp4 video/mp4
mid midi audio/midi
mkv video/x-matroska
mov video/quicktime
mp3 audio/mpeg
mpd application/dash+xml
mpeg mpg video/mpeg
odp application/vnd.oasis.opendocument.presentation
ods application/vnd.oasis.opendocument.spreadsheet
odt application/vnd.oasis.opendocument.text
oga ogg opus audio/ogg
ogv video/ogg
otf font/otf
pdf application/pdf
png image/png
ppt application/vnd.ms-powerpoint
pptx application/vnd.openxmlformats-officedocument.presentationml.presentation
ps application/postscript
rar application/vnd.rar
rss application/rss+xml
rtf application/rtf
svg image/svg+xml
tar application/x-tar
tif tiff image/tiff
ts video/mp2t
ttf font/ttf
wasm application/wasm
wav audio/wav
weba audio/webm
webm video/webm
webmanifest application/manifest+json
webp image/webp
woff font/woff
woff2 font/woff2
xhtml application/xhtml+xml
xls application/vnd.ms-excel
xlsx application/vnd.openxmlformats-officedocument.spreadsheetml.sheet
xml xsd xsl application/xml
xz application/x-xz
yaml yml application/yaml
zip application/zip
zst application/zstd
"""


def _table(text: str, suffix: str) -> dict[bytes, bytes]:
    rows = (line.split() for line in text.split("\n") if line)
    return {name.encode(): (row[-1] + suffix).encode() for row in rows for name in row[:-1]}


_TYPES = _table(_TEXT, "; charset=utf-8") | _table(_OTHER, "")


def media_type(name: bytes) -> bytes:
    """The value of Content-Type for a file called `name`."""
    return _TYPES.get(name.rpartition(b".")[2].lower(), UNKNOWN) if b"." in name else UNKNOWN
