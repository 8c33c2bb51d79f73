"""Picture formats that Calotype does not read, recognised by first bytes or by name, each with its remedy."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import NamedTuple

HEAD_BYTES = 512
"""How much of a file `format_of_bytes` wants to see: DICOM begins at byte 128, the name of NIfTI is at 344."""

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of every TIFF: little and big endian, and BigTIFF."""

_TO_PICTURES = "export the pictures as PNG, TIFF or JPEG"
_PHOTOS = "export as JPEG or PNG, or convert them, for example with ImageMagick"
_SENSOR = "it holds what the sensor measured and a preview, and neither is the picture; export it as JPEG, PNG or TIFF"
_SLICES = "export its slices as 16-bit PNG or TIFF, or as an array (N, H, W) with numpy.save"
_ARRAYS = "save the pictures as an array (N, H, W) or (N, H, W, C) with numpy.save"
_FRAMES = "export frames as pictures, for example with ffmpeg"
_DRAWING = "render it as PNG"


class Format(NamedTuple):
    """An unsupported picture format."""

    name: str
    suffixes: str  # separated by spaces
    starts: tuple[tuple[int, bytes], ...]  # any of these bytes at these places tells it
    remedy: str

    @property
    def reason(self) -> str:
        """The reason for skipping a file of this format; the text before the colon is its kind."""
        return f"{self.name}, which is not read: {self.remedy}"


def _raw(suffixes: str, *starts: tuple[int, bytes]) -> Format:
    return Format("camera raw", suffixes, starts, _SENSOR)


FORMATS: tuple[Format, ...] = (
    _raw(
        ".3fr .ari .arw .bay .cr2 .cr3 .crw .dcr .dcs .dng .drf .eip .erf .fff .gpr .iiq .k25 .kdc .mdc .mef .mos "
        ".mrw .nef .nrw .orf .pef .ptx .r3d .raf .raw .rw2 .rwl .rwz .sr2 .srf .srw .x3f",
        (8, b"CR\2\0"),
        (4, b"ftypcrx "),
        (6, b"HEAPCCDR"),
        (0, b"FUJIFILMCCD-RAW"),
        (0, b"IIRO"),
        (0, b"IIRS"),
        (0, b"MMOR"),
        (0, b"IIU\0"),
        (0, b"\0MRM"),
        (0, b"FOVb"),
    ),
    Format("HEIC or HEIF", ".heic .heif .hif .heics .heifs", (), _PHOTOS),
    Format("AVIF without its decoder", "", (), _PHOTOS),
    Format("JPEG XL", ".jxl", ((0, b"\xff\x0a"), (0, b"\0\0\0\x0cJXL \r\n\x87\n")), _PHOTOS),
    Format("PAM, or PFM of colour", ".pam", ((0, b"P7\n"), (0, b"PF\n")), _PHOTOS),
    Format("JPEG XR", ".jxr .wdp .hdp", ((0, b"II\xbc\x01"),), _PHOTOS),
    Format("JPEG-LS", ".jls", ((0, b"\xff\xd8\xff\xf7"),), _PHOTOS),
    Format("JBIG", ".jbig .jbg .jb2 .jbig2", ((0, b"\x97JB2\r\n\x1a\n"),), _PHOTOS),
    Format("BPG or FLIF", ".bpg .flif", ((0, b"BPG\xfb"), (0, b"FLIF")), _PHOTOS),
    Format(
        "DICOM",
        ".dcm .dicom .dic .ima",
        ((128, b"DICM"),),
        "export its images as 16-bit PNG or TIFF, with the window that the question needs",
    ),
    Format("NIfTI", ".nii .nii.gz", ((344, b"n+1\0"), (344, b"ni1\0"), (4, b"n+2\0\r\n\x1a\n")), _SLICES),
    Format("a volume of medical imaging", ".mgz .mgh .mnc .mhd .mha .nrrd .nhdr", ((0, b"NRRD0"),), _SLICES),
    Format("MRC", ".mrc .mrcs", ((208, b"MAP "),), _SLICES),
    Format(
        "a stack of a microscope",
        ".czi .lif .nd2 .oib .oif .vsi .ims .dm3 .dm4 .zvi .sld",
        ((0, b"ZISRAWFILE"), (0, b"\xda\xce\xbe\x0a")),
        "export it as TIFF, for example with Fiji",
    ),
    Format("a whole slide", ".mrxs .scn .bif .ndpi .vms .svslide", (), "export tiles of it, for example with QuPath"),
    Format(
        "FITS",
        ".fits .fit .fts .fits.gz .fits.fz",
        ((0, b"SIMPLE  ="),),
        "save its images as an array (N, H, W) with numpy.save, or as 16-bit PNG",
    ),
    Format("XISF", ".xisf", ((0, b"XISF0100"),), "export it as 16-bit TIFF"),
    Format(
        "OpenEXR or Radiance HDR",
        ".exr .hdr .rgbe",
        ((0, b"\x76\x2f\x31\x01"), (0, b"#?RADIANCE"), (0, b"#?RGBE")),
        "tone-map it and save it as PNG, or save it as a TIFF of floats",
    ),
    Format("film scans (DPX or Cineon)", ".dpx .cin", ((0, b"SDPX"), (0, b"XPDS"), (0, b"\x80\x2a\x5f\xd7")), _FRAMES),
    Format("PSB, a large Photoshop document", ".psb", ((0, b"8BPS\0\2"),), "export it as PNG, TIFF or JPEG"),
    Format(
        "a document of a painting program",
        ".xcf .kra .ora .afphoto .sketch .procreate .pdn .cdr",
        ((0, b"gimp xcf"), (0, b"PDN3")),
        "export it as PNG, TIFF or JPEG",
    ),
    Format("SVG", ".svg .svgz", (), _DRAWING),
    Format(
        "PDF, PostScript or a drawing",
        ".pdf .eps .ps .ai",
        ((0, b"%PDF"), (0, b"%!PS"), (0, b"\xc5\xd0\xd3\xc6")),
        _DRAWING,
    ),
    Format("Windows metafile", ".wmf .emf .wmz .emz", ((0, b"\xd7\xcd\xc6\x9a"), (40, b" EMF")), _DRAWING),
    Format("DjVu", ".djvu .djv", ((0, b"AT&TFORM"),), _TO_PICTURES),
    Format(
        "video",
        ".mp4 .m4v .mov .avi .mkv .webm .wmv .flv .mpg .mpeg .m2ts .mts .3gp .3g2 .ogv .mxf .insv .braw",
        (
            (0, b"\x1aE\xdf\xa3"),
            (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
            (0, b"\0\0\1\xba"),
            (0, b"\0\0\1\xb3"),
            (0, b"FLV\1"),
            (8, b"AVI LIST"),
            (4, b"moov"),
            (4, b"mdat"),
            (4, b"wide"),
        ),
        _FRAMES,
    ),
    Format("MATLAB data", ".mat", ((0, b"MATLAB 5.0 MAT-file"), (0, b"MATLAB 7.3 MAT-file")), _ARRAYS),
    Format("HDF5", ".h5 .hdf5 .hdf .he5 .n5", ((0, b"\x89HDF\r\n\x1a\n"), (0, b"\x0e\x03\x13\x01")), _ARRAYS),
    Format("NetCDF", ".nc .nc4 .cdf", ((0, b"CDF\1"), (0, b"CDF\2"), (0, b"CDF\5")), _ARRAYS),
    Format("GRIB", ".grib .grb .grib2 .grb2", ((0, b"GRIB"),), _ARRAYS),
    Format(
        "a texture",
        ".ktx .ktx2 .basis .pvr .astc .vtf .blp",
        ((0, b"\xabKTX "), (0, b"\x13\xab\xa1\x5c")),
        _TO_PICTURES,
    ),
    Format("MNG or JNG", ".mng .jng", ((0, b"\x8aMNG\r\n"), (0, b"\x8bJNG\r\n")), _TO_PICTURES),
)
"""What is known and not read. A reader of one of them takes it from here."""

_BY_NAME = {suffix: format for format in FORMATS for suffix in format.suffixes.split()}
CAMERA_RAW, AVIF, _HEIC, _SVG, _VIDEO = (
    next(format for format in FORMATS if format.name.startswith(name))
    for name in ("camera", "AVIF", "HEIC", "SVG", "video")
)
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
# What begins like one of these is a picture, whatever its name says: telephones call a JPEG .HEIC. Not so TIFF, as
# which the raw files of most cameras begin.
_READ = (b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", b"\xff\xd8\xff\xdb", b"\x89PNG\r\n\x1a\n", b"GIF8", b"qoif")


def format_of_name(name: str) -> Format | None:
    """The unsupported format of a file by its suffix."""
    suffixes = PurePosixPath(name.lower()).suffixes
    return _BY_NAME.get("".join(suffixes[-2:])) or _BY_NAME.get(suffixes[-1] if suffixes else "")


def format_of_bytes(head: bytes) -> Format | None:
    """The unsupported format of a file by its first HEAD_BYTES bytes; AVIF may be supported."""
    for format in FORMATS:
        if any(head[at : at + len(start)] == start for at, start in format.starts):
            return format
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    return _SVG if b"<svg" in head.lower() and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else None


def not_read(name: str, head: bytes) -> Format | None:
    """The unsupported format of a picture file; its first bytes take precedence over its name."""
    found = format_of_bytes(head)
    if found is AVIF:  # most builds of Pillow read it
        return None
    if found is None and not head.startswith(_READ):
        found = format_of_name(name)
    return found


def _of_brands(head: bytes) -> Format:
    """The format within the container of HEIF, AVIF and films, by its brands."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))}
    if brands & _AVIF_BRANDS:
        return AVIF
    return _HEIC if brands & _HEIC_BRANDS else _VIDEO
