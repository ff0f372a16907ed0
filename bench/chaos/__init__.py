"""Jobs in a storm of faults: how many are lost, how many are done twice, how soon each goes on."""
