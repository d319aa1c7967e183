"""Command lines and directives, read as Slurm's clients read them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class UsageError(Exception):
    """A client refuses its command line.

    Args:
        text: what it prints, all of it.
        code: its exit code.
    """

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


# "x:name=" takes a value, "name?" may have one ("--name=value" only), "name" has none.
SBATCH = """
A:account= acctg-freq= a:array= batch= bb= bbf= b:begin= D:chdir= M:clusters= cluster-constraint= comment= C:constraint=
container= contiguous S:core-spec= cores-per-socket= cpu-freq= cpus-per-gpu= c:cpus-per-task= deadline= delay-boot=
d:dependency= m:distribution= e:error= x:exclude= exclusive? export= export-file= F:nodefile= get-user-env? gid= gpu-bind=
gpu-freq= G:gpus= gpus-per-node= gpus-per-socket= gpus-per-task= gres= gres-flags= h:help hint= H:hold ignore-pbs i:input=
J:job-name= kill-on-invalid-dep= L:licenses= mail-type= mail-user= mcs-label= mem= mem-bind= mem-per-cpu= mem-per-gpu=
mincpus= network= nice? k:no-kill? no-requeue w:nodelist= N:nodes= n:ntasks= ntasks-per-core= ntasks-per-gpu=
ntasks-per-node= ntasks-per-socket= open-mode= o:output= O:overcommit s:oversubscribe parsable p:partition= power= prefer=
priority= profile= propagate? q:qos= Q:quiet reboot requeue reservation= signal= sockets-per-node= spread-job switches=
test-only thread-spec= threads-per-core= t:time= time-min= tmp= tres-per-task= uid= usage use-min-nodes v:verbose V:version
W:wait wait-all-nodes= wckey= wrap=
"""
SRUN = """
A:account= bcast? B:extra-node-info= C:constraint= D:chdir= comment= compress? c:cpus-per-task= cpu-bind= cpu-freq= d:dependency=
m:distribution= e:error= exact exclusive? x:exclude= export= G:gpus= gpu-bind= gpu-freq= gpus-per-node= gpus-per-task= gres= h:help
hint= i:input= J:job-name= jobid= K:kill-on-bad-exit? l:label mem= mem-bind= mem-per-cpu= mem-per-gpu= mpi= multi-prog
N:nodes= w:nodelist= n:ntasks= ntasks-per-core= ntasks-per-gpu= ntasks-per-node= ntasks-per-socket= open-mode= o:output=
overlap O:overcommit p:partition= q:qos= Q:quiet r:relative= s:oversubscribe signal= slurmd-debug= t:time= threads-per-core=
u:unbuffered v:verbose V:version W:wait= whole X:disable-status
"""
SQUEUE = """
A:account= a:all h:noheader M:clusters= i:iterate= j:jobs= l:long local me n:name= w:nodelist= o:format= O:Format= p:partition=
P:priority q:qos= r:array S:sort= s:steps? start t:states= u:user= v:verbose V:version
"""
SCANCEL = """
A:account= b:batch f:full i:interactive M:clusters= n:name= w:nodelist= p:partition= q:qos= Q:quiet R:reservation= s:signal=
t:state= u:user= v:verbose V:version
"""
SACCT = """
A:accounts= a:allusers X:allocations B:batch-script C:cluster= delimiter= D:duplicates E:endtime= o:format= j:jobs= l:long L:allclusters
N:nodelist= n:noheader name= P:parsable2 p:parsable q:qos= r:partition= S:starttime= s:state= T:truncate u:user= units= v:verbose
V:version
"""
SINFO = """
a:all d:dead e:exact N:Node n:nodes= h:noheader o:format= O:Format= p:partition= r:responding R:list-reasons s:summarize S:sort=
t:states= l:long v:verbose V:version
"""
SACCTMGR = (
    "i:immediate n:noheader p:parsable P:parsable2 Q:quiet r:readonly s:associations v:verbose V:version"
)
SCONTROL = "a:all d:details F:future h:help hide M:clusters= o:oneliner Q:quiet u:uid= v:verbose V:version"


def parse(
    program: str, table: str, words: Sequence[str], *, stops: bool = False, code: int = 1
) -> tuple[dict[str, str], list[str]]:
    """The options by their long names (one without a value is ""), and the words that are none.

    Args:
        program: whose words a refusal is in.
        table: what it takes, as above.
        words: its command line.
        stops: options end at the first word that is none.
        code: with which it refuses.

    Raises:
        UsageError: an option that it doesn't know, or one without its value.
    """
    long, short = _table(table)
    found: dict[str, str] = {}
    rest: list[str] = []
    queue = list(words)

    def refuse(text: str) -> UsageError:
        return UsageError(f'{program}: {text}\nTry "{program} --help" for more information\n', code)

    while queue:
        word = queue.pop(0)
        if word == "--":
            return found, rest + queue
        if word.startswith("--"):
            given, equals, value = word[2:].partition("=")
            name = _full_name(given, long, refuse)
            if name is None or (equals and not long[name]):
                raise refuse(f"unrecognized option '{word}'")
            if long[name] == "=" and not equals:
                if not queue:
                    raise refuse(f"option '--{name}' requires an argument")
                value = queue.pop(0)
            found[name] = value
        elif word.startswith("-") and len(word) > 1:
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter not in short:
                    raise refuse(f"invalid option -- '{letter}'")
                name = short[letter]
                value, letters = (letters, "") if long[name] else ("", letters)
                if long[name] == "=" and not value:
                    if not queue:
                        raise refuse(f"option requires an argument -- '{letter}'")
                    value = queue.pop(0)
                found[name] = value
        elif stops:
            return found, [word, *queue]
        else:
            rest.append(word)
    return found, rest


def _full_name(given: str, long: Mapping[str, str], refuse: object) -> str | None:
    """The option's name from its beginning; of several that fit, none."""
    if given in long:
        return given
    fitting = sorted(name for name in long if name.startswith(given))
    if len(fitting) > 1:
        names = " ".join(f"'--{name}'" for name in fitting)
        raise refuse(f"option '--{given}' is ambiguous; possibilities: {names}")  # type: ignore[operator]
    return fitting[0] if fitting else None


def _table(text: str) -> tuple[dict[str, str], dict[str, str]]:
    long: dict[str, str] = {}
    short: dict[str, str] = {}
    for word in text.split():
        letter, colon, name = word.rpartition(":")
        kind = name[-1] if name[-1] in "=?" else ""
        long[name.removesuffix(kind) if kind else name] = kind
        if colon:
            short[letter] = name.removesuffix(kind) if kind else name
    return long, short


def directives(script: str) -> list[str]:
    """The words of the ``#SBATCH`` lines above the first command."""
    words: list[str] = []
    for line in script.split("\n")[1:]:
        if line.startswith("#SBATCH"):
            words += split(line.removeprefix("#SBATCH"))
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return words


def split(line: str) -> list[str]:
    """Words as sbatch reads them: quotes group, a backslash takes the next character, ``#`` ends the line."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    characters = iter(line)
    for character in characters:
        if character == "\\":
            word = (word or "") + next(characters, "")
        elif quote:
            if character == quote:
                quote = ""
            else:
                word = (word or "") + character
        elif character in "\"'":
            quote, word = character, word or ""
        elif character == "#":
            break
        elif character.isspace():
            words += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + character
    return words + ([] if word is None else [word])
