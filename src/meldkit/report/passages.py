"""What models read in a smoke test."""

from __future__ import annotations

#: Charles Darwin, On the Origin of Species (1859), the beginning; in the public domain.
_PROSE = (
    "When on board H.M.S. 'Beagle,' as naturalist, I was much struck with certain facts in the distribution "
    "of the inhabitants of South America, and in the geological relations of the present to the past "
    "inhabitants of that continent. These facts seemed to me to throw some light on the origin of species"
    "—that mystery of mysteries, as it has been called by one of our greatest philosophers. On my return "
    "home, it occurred to me, in 1837, that something might perhaps be made out on this question by "
    "patiently accumulating and reflecting on all sorts of facts which could possibly have any bearing on "
    "it. After five years' work I allowed myself to speculate on the subject, and drew up some short notes; "
    "these I enlarged in 1844 into a sketch of the conclusions, which then seemed to me probable: from that "
    "period to the present day I have steadily pursued the same object."
)

#: Written for this purpose.
_CODE = '''\
def mean(values):
    """Return the arithmetic mean of a list of numbers."""
    if not values:
        raise ValueError("no values")
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def variance(values):
    """Return the population variance of a list of numbers."""
    center = mean(values)
    return mean([(value - center) ** 2 for value in values])
'''

#: Jules Verne, Vingt mille lieues sous les mers (1870), the beginning; in the public domain.
_FRENCH = (
    "L'année 1866 fut marquée par un événement bizarre, un phénomène inexpliqué et inexplicable que "
    "personne n'a sans doute oublié. Sans parler des rumeurs qui agitaient les populations des ports et "
    "surexcitaient l'esprit public à l'intérieur des continents, les gens de mer furent particulièrement "
    "émus. Les négociants, armateurs, capitaines de navires, officiers des marines militaires de tous pays, "
    "et, après eux, les gouvernements des divers États des deux continents, se préoccupèrent de ce fait au "
    "plus haut point."
)

#: By name, which heads a column of the table.
PASSAGES = {"prose": _PROSE, "code": _CODE, "French": _FRENCH}
