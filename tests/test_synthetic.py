from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from millrace.data.listing import list_source, locate
from millrace.data.made.regular_graphs import closed_walks, records
from millrace.data.records import Located, format_of, read_records
from millrace.errors import SourceError
from millrace.spec import SourceSpec

URL = "synthetic://regular_graphs?degree=3&vertices=10&records=12&seed=5"


def read(url: str) -> list[dict[str, Any]]:
    source = SourceSpec(url=url)
    found = [each for file in list_source(source, "/") for each in read_records(file, source)]
    return [each.record for each in found if isinstance(each, Located)]


def test_a_url_of_made_data_lists_one_file_whose_records_a_seed_decides() -> None:
    source = SourceSpec(url=URL)
    (file,) = list_source(source, "/anywhere")

    assert read(URL) == read(URL) == list(records(vertices=10, records=12, seed=5))
    assert read(URL) != read(URL.replace("seed=5", "seed=6"))
    assert format_of(file, source) == "made"
    assert locate(source, "/elsewhere", file.path) == URL
    assert file.num_bytes > 12 * 100


def test_the_fingerprint_of_made_data_is_of_all_its_parameters() -> None:
    def fingerprint(url: str) -> str:
        return list_source(SourceSpec(url=url), "/")[0].fingerprint

    assert fingerprint(URL) == fingerprint(URL.replace("degree=3&", ""))  # 3 is the default
    assert fingerprint(URL) != fingerprint(URL.replace("seed=5", "seed=6"))


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("synthetic://regular_graph", "Did you mean `regular_graphs`?"),
        ("synthetic://regular_graphs?vertexes=8", "Did you mean `vertices`?"),
        ("synthetic://regular_graphs?vertices=many", "vertices is `many`, no int"),
        ("synthetic://regular_graphs?vertices", "bad query field"),
        ("synthetic://regular_graphs?vertices=7", "is odd: no graph is such"),
        ("synthetic://regular_graphs?degree=8&vertices=8", "below the vertices"),
        ("synthetic://regular_graphs?vertices=6", "only 2 graphs of degree 3 with 6 vertices"),
    ],
)
def test_made_data_that_cannot_be_made_is_refused_with_a_reason(url: str, found: str) -> None:
    with pytest.raises(SourceError) as raised:
        read(url)

    assert found in raised.value.found
    assert url in str(raised.value)


@pytest.mark.parametrize(("degree", "vertices"), [(1, 6), (3, 14), (4, 9), (7, 8)])
def test_every_vertex_of_a_regular_graph_has_its_degree(degree: int, vertices: int) -> None:
    made = list(records(degree=degree, vertices=vertices, records=1, seed=1))

    for graph in made:
        edges = [tuple(edge) for edge in graph["edges"]]
        assert edges == sorted(set(edges))
        assert all(u < v for u, v in edges)
        assert Counter(end for edge in edges for end in edge) == dict.fromkeys(
            range(vertices), degree
        )


def test_no_two_graphs_are_the_same_under_other_names_of_their_vertices() -> None:
    made = list(records(vertices=8, records=5))  # there are five connected ones and 2 x K4
    rng = np.random.default_rng(0)

    looks = [closed_walks(graph["edges"], 8) for graph in made]
    renamed = [
        closed_walks([[int(names[u]), int(names[v])] for u, v in graph["edges"]], 8)
        for graph in made
        for names in [rng.permutation(8)]
    ]

    assert len(set(looks)) == 5
    assert renamed == looks


def test_each_edge_is_as_likely_as_any_other() -> None:
    made = list(records(vertices=14, records=200))

    counts = Counter(tuple(edge) for graph in made for edge in graph["edges"])

    expected = 200 * 3 / 13
    squares = sum((counts[pair] - expected) ** 2 for pair in combinations(range(14), 2))
    assert squares / expected < 130  # chi-squared of 90 degrees of freedom: 1 % lies above 124
