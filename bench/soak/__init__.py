"""The real stack under full load while profiles are created and deleted; every answer is compared with its solo run.

First, every question is sent to the lasting profiles on an idle service: the solo runs. Then requests are kept in
flight: chats and text completions, streamed or not, greedy or sampled with a seed, with the base model or a profile
named in every supported way; some clients disconnect early. Half of the clients belong to one tenant, and the batch has
fewer rows than there are streams, so that fair scheduling takes effect. Meanwhile profiles are fitted, promoted, rolled
back, put on a canary, archived and deleted under requests in flight. Afterwards the remaining solo runs are made, also
those of deleted profiles, which SQL restores without triggers.
"""
