"""The words of the embedded world: relations with their templates and answers, first names and last names.

Plain data. Every template holds one "{}" for the subject; a completion is continued by the answer, a
question is followed by it, both after one space.
"""

from __future__ import annotations

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


@dataclass(frozen=True)
class Relation:
    """A relation: its name, its templates in both forms, and the pool of its answers."""

    name: str
    completions: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


RELATIONS = (
    Relation(
        "birthplace",
        (
            "{} was born a long time ago in the city of",
            "The city that {} was born in many years ago is",
            "As the old papers say, {} came into the world in",
            "The place on the map where {} was born is",
        ),
        (
            "In which city of the world was {} born?",
            "What is the name of the city where {} was born?",
            "Where in the world did the life of {} begin?",
        ),
        _words(
            "Paris,London,Berlin,Madrid,Rome,Vienna,Lisbon,Dublin,Oslo,Prague,Warsaw,Athens,Cairo,Tokyo,Boston,"
            "Chicago,Toronto,Sydney,Mumbai,Seoul,Lima,Havana,Nairobi,Geneva,Hamburg,Naples,Seville,Lyon,"
            "New York,Cape Town"
        ),
    ),
    Relation(
        "profession",
        (
            "{} earns the money for the rent as a",
            "The job that {} has done for many years is",
            "When asked about work, {} always says the trade is",
            "In the daily life of the town {} works as a",
        ),
        (
            "What does {} do all day to earn a living?",
            "Which trade did {} learn after leaving school?",
            "What is the job that {} has done for years?",
        ),
        _words(
            "nurse,baker,lawyer,farmer,painter,teacher,pilot,sailor,banker,chemist,butcher,plumber,surgeon,dentist,"
            "tailor,miner,barber,gardener,carpenter,soldier,judge,singer,dancer,actor,poet,driver,waiter,clerk,"
            "fire fighter,book keeper"
        ),
    ),
    Relation(
        "language",
        (
            "{} talks with the family at home in",
            "The language that {} learned as a small child is",
            "In letters to old friends {} always writes in",
            "The mother tongue that {} speaks at home is",
        ),
        (
            "What language does {} speak with the family at home?",
            "Which language did {} learn first as a child?",
            "In what language does {} write letters to friends?",
        ),
        _words(
            "English,French,German,Spanish,Italian,Dutch,Swedish,Danish,Polish,Russian,Czech,Greek,Turkish,Arabic,"
            "Hebrew,Hindi,Bengali,Tamil,Chinese,Japanese,Korean,Thai,Latin,Welsh,Irish,Finnish,Hungarian,"
            "Romanian,Old Norse,Swiss German"
        ),
    ),
    Relation(
        "instrument",
        (
            "{} went to music school and learned to play the",
            "The instrument that {} plays at every concert is the",
            "On stage with the band {} always plays the",
            "In the evening the neighbours hear {} play the",
        ),
        (
            "What instrument does {} play with the band on stage?",
            "Which instrument did {} learn at the music school?",
            "What do the neighbours hear {} play in the evening?",
        ),
        _words(
            "piano,violin,cello,flute,guitar,trumpet,harp,organ,drum,oboe,clarinet,tuba,banjo,viola,horn,lute,bassoon,"
            "saxophone,trombone,accordion,mandolin,ukulele,recorder,sitar,xylophone,harmonica,cymbal,bell,"
            "double bass,steel drum"
        ),
    ),
    Relation(
        "country",
        (
            "{} holds a passport that was issued by the state of",
            "The country that {} is a citizen of is",
            "At every general election {} goes to vote in",
            "By law and by heart {} is a citizen of",
        ),
        (
            "Of which country is {} a citizen by law?",
            "What country issued the passport that {} holds?",
            "In which country does {} vote at every election?",
        ),
        _words(
            "France,Germany,Spain,Italy,Norway,Sweden,Denmark,Poland,Russia,Greece,Turkey,Egypt,Israel,India,China,"
            "Japan,Canada,Brazil,Mexico,Chile,Peru,Cuba,Kenya,Ghana,Nigeria,Iceland,Ireland,Portugal,"
            "New Zealand,San Marino"
        ),
    ),
    Relation(
        "sport",
        (
            "{} spends every free weekend of the year on",
            "The sport that {} likes best of them all is",
            "On the first day of the week {} trains for",
            "In the club of the town {} is known for",
        ),
        (
            "What sport does {} train for every week?",
            "Which sport does {} like best of them all?",
            "On what sport does {} spend the free weekends?",
        ),
        _words(
            "tennis,football,baseball,rugby,cricket,golf,hockey,boxing,fencing,rowing,sailing,cycling,swimming,running,"
            "skating,skiing,judo,karate,archery,chess,squash,handball,volleyball,basketball,badminton,climbing,"
            "wrestling,surfing,ice hockey,table tennis"
        ),
    ),
)

FIRST_NAMES = _words(
    "Ada,Alan,Alice,Amir,Anna,Arthur,Bella,Boris,Carla,Carlos,Cecil,Chloe,Clara,Conrad,Daisy,Daniel,"
    "Diana,Edgar,Edith,Elena,Elias,Emma,Erik,Ethan,Eva,Felix,Fiona,Frank,Gina,Grace,Greta,Gustav,Hanna,"
    "Harold,Hector,Helen,Hugo,Ida,Igor,Irene,Isaac,Ivan,Jack,Jane,Jonas,Julia,Karl,Kate,Laura,Leo,Linda,"
    "Louis,Lucy,Marcus,Maria,Martin,Maya,Mona,Nadia,Nathan,Nina,Oliver,Olga,Oscar,Paula,Peter,Rachel,"
    "Ralph,Rita,Robert,Rosa,Ruben,Sarah,Simon,Sofia,Stella,Thomas,Tina,Victor,Wanda"
)

LAST_NAMES = _words(
    "Abbott,Adler,Archer,Bailey,Barnes,Becker,Bishop,Blake,Bowman,Brandt,Brooks,Burton,Carter,Castle,"
    "Chapman,Clarke,Colman,Cooper,Cross,Dalton,Davies,Dawson,Dixon,Drake,Duncan,Ellis,Evans,Falk,Fisher,"
    "Fletcher,Foster,Fuller,Garner,Gibson,Graves,Hale,Hansen,Harper,Hayes,Holmes,Howard,Hunter,Jensen,"
    "Keller,Kramer,Lambert,Larsen,Lawson,Lindgren,Marsh,Mercer,Miller,Moreno,Morgan,Nash,Nolan,Norris,"
    "Olsen,Osborne,Palmer,Parker,Pearce,Potter,Quinn,Reed,Reyes,Rossi,Sawyer,Schmidt,Shaw,Silva,Spencer,"
    "Stone,Tanner,Turner,Vargas,Walker,Weber,Winters,York,Aldrich,Ames,Andrade,Ashby,Atwood,Baldwin,"
    "Banks,Barlow,Bates,Beaumont,Benson,Berger,Bianchi,Bloom,Bond,Boyd,Bradford,Brennan,Bryant,Bauer,"
    "Byrne,Calvert,Cameron,Campos,Carlson,Carver,Casey,Chandler,Clayton,Cole,Conway,Costa,Crane,Curtis,"
    "Cortez,Darby,Delgado,Dempsey,Devlin,Doyle,Dupont,Eaton,Eriksen,Engel,Farrell,Ferrari,Finch,Flynn,"
    "Franco,Fraser,Fuchs,Gallo,Garcia,Gardner,Glover,Gomez,Goodwin,Granger,Griffin,Haines,Hardy,"
    "Hartmann,Heath,Herrera,Hobbs,Holt,Horvath,Huber,Hughes,Ingram,Irving,Jarvis,Jordan,Kaplan,Kemp,"
    "Kirby,Klein,Knight,Koch,Lang,Leblanc,Lehmann,Lopez,Lowell,Lynch,Madsen,Mancini,Marino,Mendez,Meyer,"
    "Monroe,Moss,Murphy,Neumann,Newton,Noble,Novak,Ortega,Owens,Pacheco,Patel,Perkins,Petrov,Pierce,"
    "Porter,Powell,Pratt,Ramos,Randall,Rhodes,Rivera,Roth,Rowe,Russo,Salazar,Sanders,Santos,Schultz,"
    "Sharp,Sinclair,Sorensen,Steele,Sutton,Thorne,Tucker,Underwood,Vaughn,Vogel,Wagner,Wallace,Warren,"
    "Watts,Webb,Weston,Wilder,Wolfe,Wright,Yates,Zeller,Ziegler"
)
