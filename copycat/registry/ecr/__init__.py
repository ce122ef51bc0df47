"""Amazon ECR: where its repositories come from, who may log in, what a lifecycle policy would expire.

The modules are imported one by one, not from here: `hosts` and `lifecycle` are needed by
configurations that never load the AWS client, which takes half a second to import.

hosts      which host names are ECR's, and what they say
lifecycle  policies that would expire images in use
aws        credentials, clients, errors
keychain   logins for ECR and ECR Public, as source and as target
answers    what the registry's refusals mean
target     repositories made when they are first pushed to
"""
