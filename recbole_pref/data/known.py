"""Data sets of the literature that are not shipped: the file to get and the command that converts it."""

_MOVIELENS = "https://grouplens.org/datasets/movielens/"
_S3REC = "https://github.com/RUCAIBox/CIKM2020-S3Rec (folder data)"

# Name to address, and the input file, format and further options of the converter.
_KNOWN = {
    **{name: (_MOVIELENS, f"{name}/ratings.dat", "movielens", "") for name in ("ml-1m", "ml-10m")},
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
_KNOWN["ml-10m"] = (_MOVIELENS, "ml-10M100K/ratings.dat", "movielens", "")  # the folder in its archive


def known_names():
    """Return the names of the data sets: tuple of str."""
    return tuple(_KNOWN)


def how_to_get(name, output):
    """Return where a data set is published and the command that converts it: str.

    Args:
        name (str): one of ``known_names()``.
        output (str): the folder of data sets, RecBole's ``data_path``.
    """
    address, file, format, options = _KNOWN[name]
    command = f"recbole-pref-data --format={format} --input={file} --name={name} --output={output}{options}"
    return f"get {file} from {address} and run '{command}'"
