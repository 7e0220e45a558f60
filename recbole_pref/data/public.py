"""Public data sets that are not part of the package: the file to download and the command that converts it."""

_MOVIELENS = "https://grouplens.org/datasets/movielens/"
_S3REC = "https://github.com/RUCAIBox/CIKM2020-S3Rec (folder data)"

# By name: the address, and the input file, the format and more options of the converter.
_SOURCES = {
    "ml-1m": (_MOVIELENS, "ml-1m/ratings.dat", "movielens", ""),
    "ml-10m": (_MOVIELENS, "ml-10M100K/ratings.dat", "movielens", ""),  # its archive has another folder
    **{name: (_MOVIELENS, f"{name}/ratings.csv", "movielens", "") for name in ("ml-20m", "ml-25m", "ml-32m")},
    **{
        name: (_S3REC, f"{file}.txt", "sequences", f" --item_features={file}_item2attributes.json")
        for name, file in {
            "amazon-beauty": "Beauty",
            "amazon-toys-games": "Toys_and_Games",
            "amazon-sports-outdoors": "Sports_and_Outdoors",
            "lastfm-artists": "LastFM",
            "yelp": "Yelp",
        }.items()
    },
}


def public_names() -> tuple[str, ...]:
    """Return the names of the public data sets."""
    return tuple(_SOURCES)


def how_to_get(name: str, output: str) -> str:
    """Return where a data set is published and the command that converts it.

    Args:
        name: one of ``public_names()``.
        output: the folder of data sets, RecBole's ``data_path``.
    """
    address, file, format, options = _SOURCES[name]
    command = f"recbole-pref-data --format={format} --input={file} --name={name} --output={output}{options}"
    return f"download {file} from {address} and run '{command}'"
