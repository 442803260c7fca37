"""Floor 5: FID, KID, retrieval: how good are the pictures?"""
