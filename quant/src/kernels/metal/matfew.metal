// matfew
