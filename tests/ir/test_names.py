"""Names that are not taken."""

from __future__ import annotations

from whale_tf.ir.names import Names


def test_a_name_is_counted_up_until_it_is_free() -> None:
    names, taken = Names(), {"a", "a_1", "b_1"}
    found = []
    for name in ("a", "a", "b", "b", "b", "c"):
        found.append(names.unused(name, taken))
        taken.add(found[-1])
    assert found == ["a_2", "a_3", "b", "b_2", "b_3", "c"]


def test_many_of_one_name_cost_no_search() -> None:
    class Counted(set[str]):
        asked = 0

        def __contains__(self, name: object) -> bool:
            self.asked += 1
            return super().__contains__(name)

    names, taken = Names(), Counted()
    for _ in range(1000):
        taken.add(names.unused("bias", taken))
    assert taken.asked < 3000
